"""The command: finding, help, exit statuses, and what it must not import."""

import os
import subprocess
import sys

import pytest

from common import cli
from common.errors import UserError


def test_every_command_can_be_imported_and_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        try:
            status = cli.load_command(name)(["--help"])
        except SystemExit as end:
            status = end.code  # type: ignore[assignment]
        assert status in (0, None), name
        assert "usage" in capsys.readouterr().out, name


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(name in page for name in cli.COMMANDS)


def test_help_of_a_group_shows_only_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["vit"]) == 0
    page = capsys.readouterr().out
    assert "vit sweep" in page
    assert "\n  eval images" not in page


def test_unknown_command_names_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["vit", "trian"]) == 2
    assert "did you mean vit train" in capsys.readouterr().err


def test_user_error_is_one_message_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: list[str]) -> int:
        raise UserError("adapter.r=12 is wrong")

    monkeypatch.setattr(cli, "load_command", lambda name: fails)
    assert cli.main(["vit", "train"]) == 2
    assert capsys.readouterr().err == "mosgoat: adapter.r=12 is wrong\n"


def test_error_of_another_process_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert cli.main(["nonsense"]) == 2
    assert capsys.readouterr().err.startswith("mosgoat [process 3]: ")


def test_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_command", lambda name: interrupted)
    assert cli.main(["vit", "train"]) == 130


def test_a_log_that_knows_only_ascii_does_not_end_a_command() -> None:
    code = (
        "from common import cli; from common.errors import UserError\n"
        "def run(words): print('67.9 \\u00b1 1.1'); raise UserError('no class \\u2013')\n"
        "cli.load_command = lambda name: run; raise SystemExit(cli.main(['vit', 'train']))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "67.9 \\xb1 1.1\n"), done.stderr
    assert done.stderr == "mosgoat: no class \\u2013\n"


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys; from common.cli import main; main(['--help']);"
        "sys.exit(','.join(sorted({'torch', 'transformers', 'peft', 'jsonargparse', 'numpy'} & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr


def test_users_own_choice_of_waiting_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "load_command", lambda name: lambda _: 0)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert cli.main(["vit", "train"]) == 0
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert cli.main(["vit", "train"]) == 0
    assert os.environ["GOMP_SPINCOUNT"] == "7"
