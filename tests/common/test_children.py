"""A command in a process of its own: how it ended, and that it ends with who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common.children import Stopped, run_child

STUBBORN = "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
UP = "pathlib.Path(sys.argv[1]).touch(); time.sleep(300)"


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", code, *words]


def signals_when_up(file: Path, *numbers: int) -> threading.Thread:
    """Send signals to this process, one after another, once the child has made `file`."""

    def send() -> None:
        while not file.exists():
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def test_the_status_is_that_of_the_command(tmp_path: Path) -> None:
    assert run_child(python("raise SystemExit(3)")) == 3
    assert run_child(python("import os; os.kill(os.getpid(), 9)")) == -9
    with (tmp_path / "log").open("w") as log:
        code = "import os, sys; print(os.environ['WHO'], flush=True); print('err', file=sys.stderr)"
        assert run_child(python(code), output=log, environment={**os.environ, "WHO": "me"}) == 0
    assert (tmp_path / "log").read_text() == "me\nerr\n"
    with pytest.raises(OSError, match="no-such-program"):
        run_child(["no-such-program"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_becomes_sigterm_for_the_command_which_may_finish(tmp_path: Path, number: int) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.3); pathlib.Path(sys.argv[1] + '.saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save); pathlib.Path(sys.argv[1]).touch(); time.sleep(300)\n"
    )
    before = signal.getsignal(number)
    signals_when_up(tmp_path / "up", number)
    with pytest.raises(Stopped) as stopped:
        run_child(python(code, str(tmp_path / "up")))
    assert stopped.value.number == number
    assert (tmp_path / "up.saved").exists(), "it was given the time to take its checkpoint"
    assert signal.getsignal(number) == before


def test_the_second_signal_and_the_end_of_the_grace_kill_what_does_not_end(tmp_path: Path) -> None:
    signals_when_up(tmp_path / "one", signal.SIGTERM, signal.SIGTERM)
    with pytest.raises(Stopped):
        run_child(python(STUBBORN + UP, str(tmp_path / "one")), grace=300)
    signals_when_up(tmp_path / "two", signal.SIGTERM)
    with pytest.raises(Stopped):
        run_child(python(STUBBORN + UP, str(tmp_path / "two")), grace=0.2)


def test_a_signal_that_is_ignored_stays_so() -> None:
    code = "import os, signal, sys; os.kill(os.getppid(), signal.SIGHUP); sys.exit(5)"
    parent = (
        "import signal, sys\nfrom common.children import run_child\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does\n"
        f"sys.exit(run_child([sys.executable, '-c', {code!r}]))\n"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run(python(parent), cwd=root, check=False).returncode == 5
