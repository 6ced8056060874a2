"""The two commands in this process, with stubs for answers; `tests/end_to_end/test_vlm_eval.py` has the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

from eval.vlm.command import main, main_mmbench
from eval.vlm.question import Question
from tests.eval.vlm.judge_server import KEY, stub_judge
from tests.eval.vlm.judge_server import MODEL as JUDGE
from tests.eval.vlm.tables import mmbench_rows, write_textvqa, write_tsv

MODEL = ["--model", "builtin:drawn-llava", "--template", "llama3"]
Say = Callable[[Question], str]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_always_a_scores_what_circular_evaluation_gives_it(
    mmbench: Path, tmp_path: Path, answers: Callable[[Say], None], capsys: pytest.CaptureFixture[str]
) -> None:
    answers(lambda question: "A")
    assert main_mmbench([*MODEL, "--data", str(mmbench), "--output", str(tmp_path / "o")]) == 0
    content = read(tmp_path / "o" / "MMBench_DEV_EN" / "results.json")
    # A is right in one rotation of each question and wrong in all others, so that no question counts
    assert content["metrics"]["dev"]["overall"] == 0.0
    rows = pandas.read_csv(tmp_path / "o" / "MMBench_DEV_EN" / "rows.csv")
    assert rows["hit"].sum() == content["n"] == 6
    assert "0.0" in capsys.readouterr().out


def test_an_oracle_scores_100_and_leaves_everything_that_is_promised(
    mmbench: Path, tmp_path: Path, answers: Callable[[Say], None], capsys: pytest.CaptureFixture[str]
) -> None:
    answers(lambda question: f"The answer is {question.answer}.")
    assert main_mmbench([*MODEL, "--data", str(mmbench), "--output", str(tmp_path / "o")]) == 0
    content = read(tmp_path / "o" / "MMBench_DEV_EN" / "results.json")
    assert content["metrics"]["dev"]["overall"] == content["headline"] == 100.0
    assert set(content["metrics"]["dev"]["l2-category"].values()) == {100.0}
    assert (content["engine"], content["answer"], content["max_new_tokens"]) == ("own", "generate", 5)
    assert content["table"]["path"] == str(mmbench)
    files = {path.name for path in (tmp_path / "o" / "MMBench_DEV_EN").iterdir()}
    assert files == {"results.json", "predictions.jsonl", "rows.csv", "categories.csv", "radar.png", "radar.svg"}
    assert read(tmp_path / "o" / "results.json")["metrics"] == {"MMBench_DEV_EN": 100.0, "average": None}
    out = capsys.readouterr().out
    for words in ("coarse_perception", "[M] Table 5", "questions a second", "no average of the nine: without a score"):
        assert words in out


def test_missing_tables_are_named_first_and_the_rest_is_evaluated(
    folder: Path, tmp_path: Path, answers: Callable[[Say], None], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    out = ""

    def say(question: Question) -> str:
        nonlocal out
        printed = capsys.readouterr()
        seen.append(printed.err)
        out += printed.out
        return question.answer

    answers(say)
    assert main([*MODEL, "--data-root", str(folder), "--output", str(tmp_path / "o")]) == 1
    for name in ("MMBench_DEV_CN", "SEEDBench_IMG", "ScienceQA_TEST", "TextVQA_VAL", "MathVista_MINI"):
        assert f"not evaluated: {name}: there is no table" in seen[0]  # before the first answer
    found = read(tmp_path / "o" / "results.json")
    assert found["metrics"] == {
        "MMBench_DEV_EN": 100.0,
        "AI2D_TEST": 100.0,
        "MMVet": None,
        "MME": 100.0,
        "average": None,
    }
    assert found["not_scored"] == {"MMVet": "no judge"}
    assert "MMVet: not scored: no judge" in out + capsys.readouterr().out


def test_every_benchmark_scored_is_success_and_joins_what_was_measured_before(
    folder: Path, tmp_path: Path, answers: Callable[[Say], None]
) -> None:
    answers(lambda question: question.answer)
    words = [*MODEL, "--data-root", str(folder), "--output", str(tmp_path / "o")]
    assert main([*words, "--benchmarks", "MME,AI2D_TEST"]) == 0
    assert main([*words, "--benchmarks", "MMBench_DEV_EN"]) == 0
    metrics = read(tmp_path / "o" / "results.json")["metrics"]
    assert metrics == {"MME": 100.0, "AI2D_TEST": 100.0, "MMBench_DEV_EN": 100.0, "average": None}
    # what other weights have scored is not put into one row with it
    file = tmp_path / "o" / "MME" / "results.json"
    file.write_text(json.dumps({**read(file), "weights": "others"}), encoding="utf-8")
    assert main([*words, "--benchmarks", "MMBench_DEV_EN"]) == 0
    assert "MME" not in read(tmp_path / "o" / "results.json")["metrics"]


def test_results_of_other_weights_are_gone_before_their_answers(
    folder: Path, tmp_path: Path, answers: Callable[[Say], None]
) -> None:
    answers(lambda question: question.answer)
    words = [*MODEL, "--data-root", str(folder), "--output", str(tmp_path / "o"), "--benchmarks", "MME"]
    assert main(words) == 0
    file = tmp_path / "o" / "MME" / "results.json"
    file.write_text(json.dumps({**read(file), "weights": "others"}), encoding="utf-8")
    (tmp_path / "o" / "MME" / "predictions.jsonl").unlink()

    def killed(question: Question) -> str:
        raise KeyboardInterrupt

    answers(killed)
    with pytest.raises(KeyboardInterrupt):
        main(words)
    assert not file.exists()


def test_incomplete_rotations_are_scored_on_demand_and_it_is_said(
    folder: Path, tmp_path: Path, answers: Callable[[Say], None], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = mmbench_rows(3)
    write_tsv(folder / "MMBench_DEV_EN.tsv", rows[:-1])
    answers(lambda question: question.answer)
    words = ["--data", str(folder), "--output", str(tmp_path / "o"), "--allow-incomplete"]
    assert main_mmbench([*MODEL, *words]) == 0
    content = read(tmp_path / "o" / "MMBench_DEV_EN" / "results.json")
    assert content["incomplete_allowed"]
    assert any("rotations" in note for note in content["notes"])
    assert "note: not all of the rotations" in capsys.readouterr().out


def test_a_test_set_without_answers_gives_a_submission_file(
    tmp_path: Path, answers: Callable[[Say], None], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = mmbench_rows(4, splits=["test"])
    for row in rows:
        del row["answer"]
    write_tsv(tmp_path / "MMBench_TEST_CN.tsv", rows)
    answers(lambda question: "=A+1")
    words = ["--benchmark", "MMBench_TEST_CN", "--data", str(tmp_path), "--output", str(tmp_path / "o")]
    assert main_mmbench([*MODEL, *words]) == 1  # there is no score
    [path] = (tmp_path / "o" / "MMBench_TEST_CN").glob("*.xlsx")
    assert path.name == "builtin-drawn-llava_MMBench_TEST_CN.xlsx"
    found = pandas.read_excel(path, keep_default_na=False)
    assert len(found) == len(rows)
    assert set(found["prediction"]) == {"=A+1"}
    assert str(path) in capsys.readouterr().out


def test_likelihood_and_generated_scores_never_meet(
    mmbench: Path, tmp_path: Path, answers: Callable[[Say], None], capsys: pytest.CaptureFixture[str]
) -> None:
    answers(lambda question: question.answer)
    words = [*MODEL, "--data", str(mmbench), "--output", str(tmp_path / "o")]
    assert main_mmbench(words) == 0
    before = (tmp_path / "o" / "MMBench_DEV_EN" / "results.json").read_bytes()
    assert main_mmbench([*words, "--answer", "likelihood"]) == 0
    assert (tmp_path / "o" / "MMBench_DEV_EN" / "results.json").read_bytes() == before
    content = read(tmp_path / "o" / "MMBench_DEV_EN_likelihood" / "results.json")
    assert (content["answer"], content["ranked_by"]) == ("likelihood", "mean log-probability per token")
    assert set(content["metrics_by_sum"]["dev"]) == set(content["metrics"]["dev"])
    assert "max_new_tokens" not in content
    assert read(tmp_path / "o" / "results.json")["metrics"]["MMBench_DEV_EN"] == 100.0
    assert read(tmp_path / "o" / "results_likelihood.json")["answer"] == "likelihood"
    out = capsys.readouterr().out
    assert "ranked by the sum instead of the mean per token: dev overall" in out
    assert "6 questions, options ranked by likelihood" in out
    assert "not comparable with generated answers" in out


def test_other_runs_are_shown_beside(
    mmbench: Path, tmp_path: Path, answers: Callable[[Say], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, say in (("weak", lambda question: "A"), ("good", lambda question: question.answer)):
        answers(say)
        run = tmp_path / name
        words = [*MODEL, "--data", str(mmbench), "--output", str(run / "eval_vlm")]
        more = ["--beside", str(tmp_path / "weak")] if name == "good" else []
        assert main_mmbench([*words, *more]) == 0
        file = run / "eval_vlm" / "results.json"
        file.write_text(json.dumps({**read(file), "label": name}), encoding="utf-8")
    assert "\nweak " in capsys.readouterr().out
    assert "weak" in (tmp_path / "good" / "eval_vlm" / "radar_MMBench_DEV_EN.svg").read_text(encoding="utf-8")


def test_what_it_ran_on_is_noted_when_the_processes_have_met(
    mmbench: Path, tmp_path: Path, answers: Callable[[Say], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[bool] = []
    monkeypatch.setattr("common.training.processes.start", lambda: met.append(True))
    monkeypatch.setattr(
        "common.training.environment.describe_environment", lambda: {"started": "now", "met": bool(met)}
    )
    answers(lambda question: "A")
    assert main_mmbench([*MODEL, "--data", str(mmbench), "--output", str(tmp_path / "o")]) == 0
    for file in (tmp_path / "o").rglob("results.json"):
        assert read(file)["environment"] == {"met": True}
        assert read(file)["command"].startswith("mosgoat eval mmbench --model builtin:drawn-llava")


def test_a_judge_gives_mmvet_its_number_and_its_key_is_nowhere(
    folder: Path,
    tmp_path: Path,
    answers: Callable[[Say], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STUB_KEY", KEY)
    answers(lambda question: "It is blue.")
    with stub_judge(lambda prompt, temperature: "ready" if "ready" in prompt else "0.5") as judge:
        words = ["--judge-model", JUDGE, "--judge-url", judge.url, "--judge-key-env", "STUB_KEY"]
        given = [*MODEL, "--data-root", str(folder), "--output", str(tmp_path / "o"), "--benchmarks", "MMVet", *words]
        assert main(given) == 0
    content = read(tmp_path / "o" / "MMVet" / "results.json")
    assert (content["headline"], content["judge"]["model"]) == (50.0, JUDGE)
    printed = capsys.readouterr()
    assert "50.0" in printed.out
    written = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "o").rglob("*") if path.is_file())
    assert KEY not in printed.out + printed.err + written


def test_a_judge_that_fails_in_the_middle_costs_only_what_it_judges(
    folder: Path,
    tmp_path: Path,
    answers: Callable[[Say], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STUB_KEY", KEY)
    answers(lambda question: question.answer)
    reply = lambda prompt, temperature: "ready" if "ready" in prompt else (403, {"error": {"message": "no quota"}})  # noqa: E731
    with stub_judge(reply) as judge:
        words = ["--judge-model", JUDGE, "--judge-url", judge.url, "--judge-key-env", "STUB_KEY"]
        given = [*MODEL, "--data-root", str(folder), "--output", str(tmp_path / "o"), "--benchmarks", "MMVet", "MME"]
        assert main([*given, *words]) == 1
    assert read(tmp_path / "o" / "results.json")["metrics"] == {"MME": 100.0, "average": None}
    assert (tmp_path / "o" / "MMVet" / "predictions.jsonl").is_file()
    assert "not scored: MMVet: the judge" in capsys.readouterr().err.splitlines()[-1]


def test_two_runs_of_one_name_both_have_their_row(
    mmbench: Path, tmp_path: Path, answers: Callable[[Say], None], capsys: pytest.CaptureFixture[str]
) -> None:
    answers(lambda question: "A")
    other = tmp_path / "other"
    words = [*MODEL, "--data", str(mmbench)]
    assert main_mmbench([*words, "--output", str(other / "eval_vlm")]) == 0
    capsys.readouterr()
    assert main_mmbench([*words, "--output", str(tmp_path / "o"), "--beside", str(other)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("builtin:drawn-llava") == 2
    assert f"builtin:drawn-llava, {other}" in out


def test_the_folder_of_the_tables_can_come_from_the_environment(
    folder: Path, tmp_path: Path, answers: Callable[[Say], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(lambda question: question.answer)
    monkeypatch.setenv("LMUData", str(folder))
    write_textvqa(folder / "TextVQA_VAL.tsv", 3)
    assert main([*MODEL, "--benchmarks", "MME", "TextVQA_VAL", "--output", str(tmp_path / "o")]) == 0
