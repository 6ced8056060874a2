"""The engine's contract with VLMEvalKit, held with a stand-in that follows its documented interface."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.cli import main
from common.errors import UserError
from common.files import read_json_lines, write_json
from eval.vlm import vlmeval_engine_child as child
from eval.vlm.benchmarks import find_benchmark
from eval.vlm.evaluation import Job
from eval.vlm.scoring import score
from eval.vlm.table import Table, read_table
from eval.vlm.vlmeval_engine import Outcome, find_vlmeval, read_outcome, run_vlmeval, scores_of
from eval.vlm.vlmeval_metrics import metrics_of
from tests.eval.vlm.standin_vlmeval import write_standin
from tests.eval.vlm.tables import mmbench_rows, mmvet_rows, write_choice, write_mmbench, write_mme, write_tsv

SEED = find_benchmark("SEEDBench_IMG")
MODEL = {"run": None, "model": "builtin:drawn-llava", "template": "vicuna_v1", "precision": None, "device": "cpu"}


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What the stand-in changes in this process is put back."""
    variables, words, path = dict(os.environ), list(sys.argv), list(sys.path)
    yield monkeypatch
    os.environ.clear()
    os.environ |= variables
    sys.argv[:], sys.path[:] = words, path
    for name in [name for name in sys.modules if name.split(".")[0] == "vlmeval"]:
        del sys.modules[name]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return read_table(write_choice(tmp_path / "questions.tsv", 5), SEED)


def job_of(folder: Path, benchmark: str = "SEEDBench_IMG", data: Path | None = None) -> Job:
    judge = {"judge_model": None, "judge_url": None, "judge_key_env": "K", "judge_workers": 1}
    return Job(
        options=argparse.Namespace(**MODEL, **judge),
        benchmarks=[find_benchmark(benchmark)],
        data=data,
        output=folder / "out",
        answer="generate",
        batch_size=8,
        max_new_tokens=None,
        allow_incomplete=False,
        beside=[],
    )


def run_child(folder: Path, table: Table, kit: Path | None = None) -> dict[str, Any]:
    """The process's work, in this process."""
    kit, data = kit or write_standin(folder / "kit"), folder / "data"
    data.mkdir(exist_ok=True)
    link = data / f"{table.benchmark.name}.tsv"
    if not link.exists():
        link.symlink_to(table.path)
    spec = {
        "root": str(kit),
        "benchmark": table.benchmark.name,
        "table": str(table.path),
        "lmu_data": str(data),
        "work": str(folder),
        "outcome": str(folder / "outcome.json"),
        "options": MODEL,
        "max_new_tokens": 5,
        "mode": "all",
    }
    write_json(folder / "spec.json", spec)
    assert child.main([str(folder / "spec.json")]) == 0
    return json.loads((folder / "outcome.json").read_text())


def test_every_question_is_asked_once_with_our_words_and_scored_by_the_kit(
    tmp_path: Path, table: Table, clean: pytest.MonkeyPatch
) -> None:
    told = run_child(tmp_path, table)
    outcome = read_outcome(tmp_path / "outcome.json", SEED, table, tmp_path / "log")
    assert set(outcome.predictions) == {question.index for question in table.questions}
    assert told["precision"] == "float32"
    own = score(SEED, table, outcome.predictions)
    # the stand-in compares the first letter, which is what the rules make of such short answers
    assert set(outcome.figures) == {"split=none|Overall"}
    assert len(own.rows) == 5


def test_an_evaluation_that_stopped_goes_on_with_the_answers_of_the_same_weights(
    tmp_path: Path, table: Table, clean: pytest.MonkeyPatch
) -> None:
    asked = []
    real = child.generate

    def counted(*arguments: Any, **more: Any) -> list[str]:
        asked.append(1)
        return real(*arguments, **more)

    clean.setattr(child, "generate", counted)
    clean.setenv("STANDIN", "fail")
    run_child(tmp_path, table)
    with pytest.raises(UserError, match=r"VLMEvalKit failed on SEEDBench_IMG: CUDA error: out of luck; its log"):
        read_outcome(tmp_path / "outcome.json", SEED, table, tmp_path / "log")
    assert len(asked) == 3
    os.environ["STANDIN"] = ""
    run_child(tmp_path, table)
    assert len(asked) == 5
    first = read_outcome(tmp_path / "outcome.json", SEED, table, tmp_path / "log").predictions
    # other weights, by what marks them: nothing is used again
    clean.setattr(child, "identity", lambda options, base: "others")
    run_child(tmp_path, table)
    assert len(asked) == 10
    assert read_outcome(tmp_path / "outcome.json", SEED, table, tmp_path / "log").predictions == first
    assert len(read_json_lines(tmp_path / "answers.jsonl")) == 10


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("skip", "VLMEvalKit failed on SEEDBench_IMG: mmbench_evaluation_requires_official_server"),
        ("no metrics", "its status file says 'done'"),
        ("leave out", "VLMEvalKit left out 1 questions"),
    ],
)
def test_what_ends_well_by_its_exit_status_is_still_a_failure(
    how: str, told: str, tmp_path: Path, table: Table, clean: pytest.MonkeyPatch
) -> None:
    clean.setenv("STANDIN", how)
    run_child(tmp_path, table)
    with pytest.raises(UserError, match=told):
        read_outcome(tmp_path / "outcome.json", SEED, table, tmp_path / "log")


def test_without_a_status_file_there_is_no_success(tmp_path: Path, table: Table) -> None:
    write_json(tmp_path / "outcome.json", {"status": None, "predictions": "x", "weights": "", "template": ""})
    with pytest.raises(UserError, match="its status file says 'nothing'"):
        read_outcome(tmp_path / "outcome.json", SEED, table, tmp_path / "log")


def test_a_kit_that_cannot_be_imported_says_what_to_install(
    tmp_path: Path, table: Table, clean: pytest.MonkeyPatch
) -> None:
    kit = write_standin(tmp_path / "kit")
    (kit / "vlmeval" / "config.py").write_text("import a_missing_package\n")
    told = run_child(tmp_path, table, kit)
    assert "No module named 'a_missing_package'" in told["error"]
    assert "requirements.txt" in told["error"]


def test_the_kit_is_found_by_option_or_import(tmp_path: Path, clean: pytest.MonkeyPatch) -> None:
    kit = write_standin(tmp_path / "kit")
    assert find_vlmeval(kit) == kit.resolve()
    with pytest.raises(UserError, match=r"no checkout of VLMEvalKit.*git clone"):
        find_vlmeval(tmp_path)
    clean.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"which is not installed: git clone") as told:
        find_vlmeval(None)
    assert "\n" not in str(told.value)
    clean.undo()
    sys.path.insert(0, str(kit))
    assert find_vlmeval(None) == kit.resolve()
    (kit / "run.py").unlink()
    with pytest.raises(UserError, match=r"without its run\.py"):
        find_vlmeval(None)


@pytest.mark.slow
def test_the_command_gives_the_kits_score_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "tables"
    data.mkdir()
    write_choice(data / "SEEDBench_IMG.tsv", 5)
    words = f"eval vlm --model builtin:drawn-llava --template vicuna_v1 --benchmarks SEEDBench_IMG --data-root {data}"
    kit = f"--output {tmp_path / 'out'} --engine vlmeval --vlmeval-root {write_standin(tmp_path / 'kit')}"
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(f"{words} {kit}".split()) == 0
    content = json.loads((tmp_path / "out" / "vlmeval" / "SEEDBench_IMG" / "results.json").read_text())
    assert content["engine"] == "vlmeval"
    figures = content["vlmeval"]["metrics"]
    assert content["metrics"] == {"overall": 100 * figures["split=none|Overall"]}
    assert "VLMEvalKit" in capsys.readouterr().out
    monkeypatch.setenv("STANDIN", "crash")
    assert main(f"{words} {kit}".split()) == 2
    assert "VLMEvalKit's process ended without a word" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "told"), [("WORLD_SIZE", "is one process"), ("answer", "--answer=likelihood is not for")]
)
def test_what_the_engine_cannot_do_is_told(
    setting: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path)
    if setting == "answer":
        object.__setattr__(job, "answer", "likelihood")
    else:
        monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=told):
        run_vlmeval(job, None)


def test_scores_that_differ_from_ours_are_noted(tmp_path: Path, table: Table) -> None:
    answers = {question.index: question.answer for question in table.questions}
    named = {"weights": "w", "template": "t", "precision": "p"}
    same = Outcome(answers, {"split=none|Overall": 1.0}, named, tmp_path)
    assert scores_of(job_of(tmp_path), SEED, table, same, None).notes == []
    other = Outcome(answers, {"split=none|Overall": 0.5}, named, tmp_path)
    scores = scores_of(job_of(tmp_path), SEED, table, other, None)
    assert scores.metrics == {"overall": 50.0}
    assert "score the same answers 100.00, VLMEvalKit 50.00" in scores.notes[0]


def test_judged_benchmarks_are_answered_and_not_scored_by_the_kit(tmp_path: Path) -> None:
    benchmark = find_benchmark("MMVet")
    table = read_table(write_tsv(tmp_path / "m.tsv", mmvet_rows()), benchmark)
    answers = {question.index: "blue" for question in table.questions}
    outcome = Outcome(answers, {}, {"weights": "w", "template": "t", "precision": "p"}, tmp_path)
    scores = scores_of(job_of(tmp_path, "MMVet"), benchmark, table, outcome, None)
    assert scores.not_scored == "no judge"
    assert scores.metrics == {}


def test_flat_figures_take_the_forms_of_our_own(tmp_path: Path) -> None:
    # names as VLMEvalKit's status file has them (observed with its commit e8e78f0)
    circular = find_benchmark("MMBench_DEV_EN")
    table = read_table(write_mmbench(tmp_path / "a.tsv", 4), circular)
    figures = {
        "split=dev|Overall": 0.5,
        "split=dev|AR": 0.0,
        "split=dev|CP": 1.0,
        "split=dev|colour of circle": 0.5,
        "split=dev|colour of square": 0.5,
    }
    assert metrics_of(circular, table, figures) == {
        "dev": {
            "overall": 50.0,
            "category": {"colour of circle": 50.0, "colour of square": 50.0},
            "l2-category": {"attribute_reasoning": 0.0, "coarse_perception": 100.0},
        }
    }
    mme = find_benchmark("MME")
    table = read_table(write_mme(tmp_path / "b.tsv", 1), mme)
    names = {question.category for question in table.questions}
    figures = {"perception": 1500.0, "reasoning": 300.0, **dict.fromkeys(names, 100.0)}
    found = metrics_of(mme, table, figures)
    assert (found["total"], found["scaled"]) == (1800.0, pytest.approx(1800 / 28))
    assert (found["cognition"], set(found["category"])) == (300.0, names)
    assert metrics_of(find_benchmark("TextVQA_VAL"), table, {"Overall": 61.5}) == {"accuracy": 61.5}


def test_rotations_that_are_missing_end_it_before_the_kit_counts_them_as_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in mmbench_rows(3) if row["index"] != 1_000_000]
    path = write_tsv(tmp_path / "cut.tsv", rows)
    with pytest.raises(UserError, match="rotations"):
        run_vlmeval(job_of(tmp_path, "MMBench_DEV_EN", path), write_standin(tmp_path / "kit"))


@pytest.mark.slow
def test_its_process_does_not_outlive_a_terminated_command(tmp_path: Path) -> None:
    kit, questions = write_standin(tmp_path / "kit"), write_choice(tmp_path / "SEEDBench_IMG.tsv", 2)
    given = ["--model", "builtin:drawn-llava", "--template", "vicuna_v1", "--benchmarks", "SEEDBench_IMG"]
    given += ["--engine", "vlmeval", "--vlmeval-root", str(kit), "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "common.cli", "eval", "vlm", *given, "--data-root", str(questions.parent)]
    parent = subprocess.Popen(command, env={**os.environ, "STANDIN": "wait"}, stderr=subprocess.PIPE, text=True)
    log, said = tmp_path / "out/vlmeval/SEEDBench_IMG/files/vlmeval.log", None
    while said is None:
        assert parent.poll() is None, parent.communicate()[1]
        time.sleep(0.05)
        said = re.search(r"waiting (\d+)\n", log.read_text()) if log.is_file() else None
    parent.terminate()
    _, told = parent.communicate()
    assert parent.returncode == 128 + signal.SIGTERM
    assert "stopped; the answers so far are kept, and the same command goes on" in told
    with pytest.raises(ProcessLookupError):
        os.kill(int(said[1]), 0)
