"""What the two commands refuse, before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import UserError
from eval.vlm.command import main, main_mmbench
from tests.eval.vlm.judge_server import MODEL as JUDGE
from tests.eval.vlm.judge_server import stub_judge
from tests.eval.vlm.tables import mmbench_rows, write_tsv

MODEL = ["--model", "builtin:drawn-llava", "--template", "llama3"]


def test_a_damaged_table_is_named_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, no_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = mmbench_rows(3)
    del rows[-1]
    write_tsv(folder / "MMBench_DEV_EN.tsv", rows)
    (folder / "AI2D_TEST.tsv").write_text("index\tquestion\n1\tWhat?\n")
    words = [*MODEL, "--data-root", str(folder), "--output", str(tmp_path / "o"), "--benchmarks"]
    with pytest.raises(UserError, match=r"rotations .*not all there.*no column") as caught:
        main([*words, "MMBench_DEV_EN", "AI2D_TEST"])
    assert "--allow-incomplete" in str(caught.value)


def test_a_judge_that_does_not_answer_is_named_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_KEY", "another key")
    with stub_judge(lambda prompt, temperature: "ready") as judge:
        words = ["--judge-model", JUDGE, "--judge-url", judge.url, "--judge-key-env", "STUB_KEY"]
        given = [*MODEL, "--data-root", str(folder), "--output", str(tmp_path / "o"), "--benchmarks", "MMVet", *words]
        with pytest.raises(UserError, match="refuses the key in"):
            main(given)


def test_all_may_stand_beside_other_names(tmp_path: Path, folder: Path, no_model: None) -> None:
    with pytest.raises(UserError, match="there is no table of") as told:
        main([*MODEL, "--output", str(tmp_path), "--data-root", str(tmp_path), "--benchmarks", "all", "ScienceQA_VAL"])
    assert str(told.value).count("there is no table of") == 10


def test_results_of_something_else_are_never_overwritten(folder: Path, tmp_path: Path, no_model: None) -> None:
    kept = tmp_path / "run" / "results.json"
    kept.parent.mkdir()
    kept.write_text('{"task": "llava", "metrics": {}}', encoding="utf-8")
    with pytest.raises(UserError, match=r"has a results\.json of llava; give another folder"):
        main([*MODEL, "--data-root", str(folder), "--output", str(kept.parent)])
    assert json.loads(kept.read_text())["task"] == "llava"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--benchmarks", ","], "--benchmarks names none"),
        (["--benchmarks", "MME", "--judge-model", "x"], "--judge-model has no effect on MME"),
        (["--benchmarks", "MMBench_DEV_FR"], "there is no benchmark 'MMBench_DEV_FR'"),
        (["--benchmarks", "all", "--answer", "likelihood"], "likelihood ranks given options, and TextVQA_VAL"),
        (["--batch-size", "0"], "--batch-size=0 must be from 1 to"),
        (["--max-new-tokens", "-1"], "--max-new-tokens=-1 must be from 1 to"),
        (["--answer", "likelihood", "--max-new-tokens", "4", "--benchmarks", "MME"], "generates nothing"),
        (["--vlmeval-root", "."], "no effect without --engine vlmeval"),
        (["--data-root", "absent"], "--data-root=absent is not a folder"),
        (["--beside", "absent"], "--beside=absent was not evaluated"),
        (["--benchmarks", "MMBench_DEV_CN"], "there is no table of MMBench_DEV_CN"),
    ],
)
def test_a_wrong_option_is_named_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, no_model: None, words: list[str], message: str
) -> None:
    given = [] if "--data-root" in words else ["--data-root", str(folder)]
    with pytest.raises(UserError, match=message):
        main([*MODEL, "--output", str(tmp_path / "o"), *given, *words])


def test_what_cannot_be_evaluated_is_named(tmp_path: Path, no_model: None) -> None:
    with pytest.raises(UserError, match="--model needs --output"):
        main(MODEL)
    with pytest.raises(UserError, match="is not the directory of a run"):
        main(["--run", str(tmp_path)])
    with pytest.raises(UserError, match="MME is not MMBench"):
        main_mmbench([*MODEL, "--output", str(tmp_path), "--benchmark", "MME"])


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_an_output_in_the_place_of_a_file_is_refused_before_the_model_is_loaded(
    below: str, no_model: None, mmbench: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes").write_text("kept")
    with pytest.raises(UserError, match=r"--output=.*notes.*notes is a file; give the path of a folder"):
        main_mmbench([*MODEL, "--data", str(mmbench), "--output", str(tmp_path / "notes" / below)])
