"""`mosgoat eval study` as an organiser types it."""

from __future__ import annotations

import importlib.util
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from common.cli import main as mosgoat
from eval.study.command import main
from eval.study.database import open_study
from tests.eval.study.serving import ROOT
from tests.eval.study.world import answer, enter, generated


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    return [word for name in ("MoSLoRA", "LoRA") for word in ("--set", f"{name}={generated(tmp_path, name)}")]


def test_from_pictures_to_the_table(tmp_path: Path, sets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    study = str(tmp_path / "study")
    assert main(["import", "--study", study, *sets, "--title", "Dogs"]) == 0
    assert "6 pairs of MoSLoRA, LoRA" in capsys.readouterr().out
    assert main(["invite", "--study", study, "--raters", "2", "--base-url", "https://s.example.org/"]) == 0
    told = capsys.readouterr().out
    links = re.findall(r"^(rater \d\d|organiser 1)  https://s\.example\.org/enter/([\w-]{32})$", told, re.MULTILINE)
    assert [name for name, _ in links] == ["rater 01", "rater 02", "organiser 1"]
    assert "shown only now" in told
    for _, token in links[:2]:
        client = enter(open_study(Path(study)), token)
        for _ in range(6):
            answer(client, "tie", "left")
    assert main(["invite", "--study", study, "--list"]) == 0
    assert capsys.readouterr().out == "rater 01  6 of 6\nrater 02  6 of 6\n"
    assert main(["results", "--study", study, "--output", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert "MoSLoRA against LoRA" in table
    assert "100.0 [75.8, 100.0]" in table  # 12 ties of 12
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["metrics"]["subject_similarity/tie"] == 1.0


def test_an_organisers_link_is_made_once_unless_asked(
    tmp_path: Path, sets: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(tmp_path / "study")
    main(["import", "--study", study, *sets])
    main(["invite", "--study", study, "--raters", "1"])
    capsys.readouterr()
    main(["invite", "--study", study, "--raters", "1"])
    assert "organiser" not in capsys.readouterr().out
    main(["invite", "--study", study, "--organiser"])
    assert "organiser 2  http://127.0.0.1:8000/enter/" in capsys.readouterr().out
    main(["invite", "--study", study, "--revoke", "rater 02"])
    main(["invite", "--study", study, "--list"])
    assert "rater 02  0 of 6  link ended" in capsys.readouterr().out
    main(["invite", "--study", study, "--renew", "rater 02"])
    assert re.search(r"^rater 02  http\S+/enter/[\w-]{32}$", capsys.readouterr().out, re.MULTILINE)


def test_pictures_left_out_give_status_1(tmp_path: Path, sets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "LoRA" / "dog6" / "00_0.png").write_bytes(b"")
    assert main(["import", "--study", str(tmp_path / "study"), *sets]) == 1
    assert "1 unreadable:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "--study", "s", "--set", "a"], "--set a must be NAME=FOLDER"),
        (["import", "--study", "s", "--set", "=x"], "--set =x must be NAME=FOLDER"),
        (["results", "--study", "absent"], "there is no study at absent"),
        (["serve", "--study", "absent"], "there is no study at absent"),
        (["invite", "--study", "absent", "--raters", "3"], "there is no study at absent"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mosgoat(["eval", "study", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_without_the_extra_serving_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastapi" else find(name))
    assert mosgoat(["eval", "study", "serve", "--study", "x"]) == 2
    assert "needs fastapi; install the extra: pip install -e '.[study]'" in capsys.readouterr().err


def test_neither_torch_nor_the_web_server_is_loaded_for_the_rest(tmp_path: Path) -> None:
    code = (
        "import sys, eval.study.command, eval.study.importing, eval.study.inviting, eval.study.export;"
        "print(sorted({'torch', 'fastapi', 'uvicorn', 'matplotlib'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, sets: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert mosgoat(["eval", "study", "import", "--study", str(tmp_path / "file" / "s"), *sets]) == 2
    assert "could not be written: [Errno 20] Not a directory" in capsys.readouterr().err
    study = str(tmp_path / "study")
    main(["import", "--study", study, *sets])
    assert mosgoat(["eval", "study", "results", "--study", study, "--output", str(tmp_path / "file")]) == 2
    assert "is a file; give the path of a folder" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, sets: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("eval.study.importing.create_database", full)
    assert mosgoat(["eval", "study", "import", "--study", str(tmp_path / "study"), *sets]) == 2
    assert "database or disk is full; nothing was changed" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "study" in path.name]


def test_results_of_a_run_are_not_overwritten(
    tmp_path: Path, sets: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    study, run = str(tmp_path / "study"), tmp_path / "run"
    main(["import", "--study", study, *sets])
    run.mkdir()
    (run / "results.json").write_text('{"task": "dreambooth", "metrics": {}}')
    assert mosgoat(["eval", "study", "results", "--study", study, "--output", str(run)]) == 2
    assert "results.json of dreambooth" in capsys.readouterr().err
    assert json.loads((run / "results.json").read_text())["task"] == "dreambooth"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["invite", "--raters", "1", "--base-url", "study.example.org"], "must begin with http:// or https://"),
        (["invite", "--renew", ""], "nobody in this study is called ''"),
        (["invite", "--revoke", ""], "nobody in this study is called ''"),
        (["serve", "--port", "99999"], "--port=99999 must be between 0 and 65535"),
    ],
)
def test_what_would_do_nothing_or_something_else_is_refused(
    tmp_path: Path, sets: list[str], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    study = str(tmp_path / "study")
    main(["import", "--study", study, *sets])
    assert mosgoat(["eval", "study", words[0], "--study", study, *words[1:]]) == 2
    assert message in capsys.readouterr().err


def test_prompts_that_fit_nothing_are_told(tmp_path: Path, sets: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    file, plain = tmp_path / "p.csv", tmp_path / "plain" / "dog"
    file.write_text("picture,prompt\ncat/1,a cat\n")
    words = ["eval", "study", "import", "--study", str(tmp_path / "study"), "--prompts", str(file)]
    assert mosgoat([*words, *sets]) == 2
    assert "has no effect: the manifests of all sets bring their own" in capsys.readouterr().err
    plain.mkdir(parents=True)
    (plain / "1.png").write_bytes(b"never opened")
    assert mosgoat([*words, "--set", f"A={plain.parent}", "--set", f"B={plain.parent}"]) == 2
    assert "it has no line in the file of prompts" in capsys.readouterr().err
