"""MathVista and MM-Vet: what the judge is asked, what its answers are worth, and that there is no score without one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from common.cli import main
from common.errors import UserError
from eval.vlm.benchmarks import find_benchmark
from eval.vlm.judge import Judge, Verdict, open_judge
from eval.vlm.judged import score_judged
from eval.vlm.judged_mmvet import read_grade
from eval.vlm.scoring import main_figure, score
from eval.vlm.table import Table, read_table
from tests.eval.vlm.judge_server import KEY, MODEL, stub_judge
from tests.eval.vlm.tables import base64_of, drawn, mathvista_rows, mmvet_rows, write_tsv

MATHVISTA, MMVET = find_benchmark("MathVista_MINI"), find_benchmark("MMVet")


@dataclass
class Said:
    """A judge that gives one answer to everything, and keeps what it was asked."""

    answer: str
    asked: list[str] = field(default_factory=list)
    url: str = "http://judge"
    model: str = "said"

    def ask(self, prompts: Sequence[str], read: Callable[[str], Any], *, label: str) -> list[Verdict[Any]]:
        self.asked += prompts
        return [Verdict(read(self.answer), self.answer) for _ in prompts]


def judge(answer: str) -> Judge:
    return cast(Judge, Said(answer))


def table_of(folder: Path, benchmark: Any, rows: list[dict[str, Any]]) -> Table:
    return read_table(write_tsv(folder / "table.tsv", rows), benchmark)


def free(index: int, kind: str, answer: str) -> dict[str, Any]:
    row = mathvista_rows()[1]
    return {**row, "index": index, "answer_type": kind, "answer": answer}


def test_without_a_judge_there_is_no_number(tmp_path: Path) -> None:
    for benchmark, rows in ((MATHVISTA, mathvista_rows()), (MMVET, mmvet_rows())):
        table = table_of(tmp_path, benchmark, rows)
        answers = {question.index: "4" for question in table.questions}
        found = score(benchmark, table, answers)
        assert found.not_scored == "no judge"
        assert found.metrics == {}
        assert main_figure(benchmark, found.metrics) is None


def test_what_rules_can_settle_is_not_put_to_the_judge(tmp_path: Path) -> None:
    table = table_of(tmp_path, MATHVISTA, mathvista_rows())
    asked = Said("4")
    found = score_judged(MATHVISTA, table, {1: "(B)", 2: "4"}, cast(Judge, asked))
    assert asked.asked == []
    assert [row["hit"] for row in found.rows] == [False, True]  # a named choice is settled, right or wrong
    found = score_judged(MATHVISTA, table, {1: "one of them", 2: "5"}, cast(Judge, asked))
    assert len(asked.asked) == 2
    assert "one of them" in asked.asked[0]
    assert "the letter of a choice" in asked.asked[0]
    assert "a whole number" in asked.asked[1]
    assert [row["hit"] for row in found.rows] == [False, True]


def test_a_refusal_is_wrong_and_not_put_to_the_judge(tmp_path: Path) -> None:
    table = table_of(tmp_path, MATHVISTA, mathvista_rows()[:1])
    asked = Said("A")
    found = score_judged(MATHVISTA, table, {1: "I can't process this file."}, cast(Judge, asked))
    assert asked.asked == []
    assert found.metrics["overall"] == 0


@pytest.mark.parametrize(
    ("kind", "answer", "extracted", "right"),
    [
        ("integer", "4", "4", True),
        ("integer", "4", " 4 ", True),
        ("integer", "4", "4.0", False),  # VLMEvalKit's rule
        ("integer", "4", "four", False),
        ("float", "0.50", "0.5", True),
        ("float", "0.5", "0.51", False),
        ("list", "[1, 2]", "[1,2]", True),  # VLMEvalKit never counts a list as right
        ("list", "[1, 2]", "[2, 1]", False),
        ("text", "mean", "mean", True),
    ],
)
def test_an_extracted_answer_is_compared_by_its_type(
    kind: str, answer: str, extracted: str, right: bool, tmp_path: Path
) -> None:
    table = table_of(tmp_path, MATHVISTA, [free(1, kind, answer)])
    found = score_judged(MATHVISTA, table, {1: "let me think"}, judge(extracted))
    assert found.rows[0]["hit"] is right


def test_tasks_and_skills_are_told_apart(tmp_path: Path) -> None:
    rows = [
        {**free(1, "integer", "4"), "task": "a", "skills": "['x', 'y']"},
        {**free(2, "integer", "5"), "task": "b", "skills": "x"},
    ]
    table = table_of(tmp_path, MATHVISTA, rows)
    found = score_judged(MATHVISTA, table, {1: "4", 2: "no"}, judge("4"))
    assert found.metrics == {"overall": 50.0, "task": {"a": 100.0, "b": 0.0}, "skill": {"x": 50.0, "y": 100.0}}
    assert found.n == 2
    assert "settled by rule: 1" in found.notes[-1]


def test_grades_are_averaged_overall_per_capability_and_per_combination(tmp_path: Path) -> None:
    rows = [*mmvet_rows(), {**mmvet_rows()[0], "index": 2, "category": "ocr, math"}]
    table = table_of(tmp_path, MMVET, rows)
    grades = {"one": "0.5", "two": "1", "three": "0.0"}

    class ByAnswer(Said):
        def ask(self, prompts: Sequence[str], read: Callable[[str], Any], *, label: str) -> list[Verdict[Any]]:
            texts = [next(grade for name, grade in grades.items() if f"\n{name}\n" in prompt) for prompt in prompts]
            return [Verdict(read(text), text) for text in texts]

    found = score_judged(MMVET, table, {0: "one", 1: "two", 2: "three"}, cast(Judge, ByAnswer("")))
    assert found.metrics == {
        "overall": 50.0,
        "category": {"rec": 75.0, "ocr": 50.0, "math": 0.0},
        "combination": {"rec": 50.0, "rec_ocr": 100.0, "ocr_math": 0.0},
    }


def test_the_judge_of_mmvet_sees_question_truth_and_answer(tmp_path: Path) -> None:
    asked = Said("1.0")
    table = table_of(tmp_path, MMVET, mmvet_rows())
    score_judged(MMVET, table, {0: "{navy}", 1: "x"}, cast(Judge, asked))
    assert "Which colour?" in asked.asked[0]
    assert "blue <OR> navy" in asked.asked[0]
    assert "{navy}" in asked.asked[0]
    assert "a square <AND> blue" in asked.asked[1]


@pytest.mark.parametrize(
    ("text", "grade"),
    [("0.7", 0.7), ("1", 1.0), ("1.", 1.0), ("1.1", None), ("-0.1", None), ("nan", None), ("high", None), ("", None)],
)
def test_only_a_number_from_0_to_1_is_a_grade(text: str, grade: float | None) -> None:
    assert read_grade(text) == grade


def test_answers_that_the_judge_cannot_read_are_no_zeros_in_silence(tmp_path: Path) -> None:
    table = table_of(tmp_path, MMVET, mmvet_rows())
    with pytest.raises(UserError, match=r"nothing usable on 2 of 2 answers: 0, 1; try another judge"):
        score_judged(MMVET, table, {0: "a", 1: "b"}, judge("good"))
    found = score_judged(MMVET, table, {0: "a", 1: "b"}, judge("good"), allow_incomplete=True)
    assert found.metrics["overall"] == 0
    assert "counted as wrong" in found.notes[0]


def test_missing_predictions_are_an_error_unless_allowed(tmp_path: Path) -> None:
    table = table_of(tmp_path, MMVET, mmvet_rows())
    with pytest.raises(UserError, match="1 of 2 rows"):
        score_judged(MMVET, table, {0: "a"}, judge("1"))
    found = score_judged(MMVET, table, {0: "a"}, judge("1"), allow_incomplete=True)
    assert found.n == 1
    assert "left out without a prediction: 1 row: 1" in found.notes[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answer_option": "C"}, "answer_option names none of the choices"),
        ({"choices": "__import__('os').system('true')"}, "answer_option names none of the choices"),
        ({"choices": "['1', '2'"}, "answer_option names none of the choices"),
    ],
)
def test_rows_that_could_not_be_judged_end_it_before_anything_is_asked(
    change: dict[str, str], told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        table_of(tmp_path, MATHVISTA, [mathvista_rows()[0] | change])


def test_a_number_that_is_none_ends_it_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the answer is not what its answer_type says"):
        table_of(tmp_path, MATHVISTA, [free(1, "integer", "four")])
    image = base64_of(drawn("red", "circle"))
    with pytest.raises(UserError, match="there is no category"):
        table_of(tmp_path, MMVET, [{"index": 0, "image": image, "question": "?", "answer": "x", "category": ""}])


def test_the_command_scores_with_a_judge_and_says_that_there_is_none_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUB_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    data = write_tsv(tmp_path / "table.tsv", mmvet_rows())
    lines = [json.dumps({"index": index, "prediction": "blue"}) for index in (0, 1)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines) + "\n")
    words = f"eval score --benchmark MMVet --data {data} --predictions {tmp_path / 'p.jsonl'} --output"
    assert main([*words.split(), str(tmp_path / "without")]) == 1
    content = json.loads((tmp_path / "without" / "results.json").read_text())
    assert (content["not_scored"], content["metrics"], content["headline"]) == ("no judge", {}, None)
    with stub_judge(lambda prompt, _: "0.5") as stub:
        judge_words = f"--judge-model {MODEL} --judge-url {stub.url} --judge-key-env STUB_KEY"
        assert main([*words.split(), str(tmp_path / "with"), *judge_words.split()]) == 0
    content = json.loads((tmp_path / "with" / "results.json").read_text())
    assert content["metrics"]["overall"] == content["headline"] == 50.0
    output = capfd.readouterr()
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert all(KEY not in text for text in (output.out, output.err, *files))


def test_both_are_scored_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with stub_judge(lambda prompt, _: "0.5" if "[ground truth]" in prompt else "4") as stub:
        opened = open_judge(MODEL, stub.url, tmp_path / "judge.jsonl", "STUB_KEY")
        table = table_of(tmp_path, MMVET, mmvet_rows())
        found = score(MMVET, table, {0: "navy", 1: "a blue square"}, judge=opened)
        assert found.metrics["overall"] == 50.0
        table = table_of(tmp_path, MATHVISTA, mathvista_rows())
        found = score(MATHVISTA, table, {1: "A", 2: "four corners"}, judge=opened)
        assert found.metrics["overall"] == 100.0
        assert f"judged by {MODEL} at {stub.url}" in found.notes[-1]
