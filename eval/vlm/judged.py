"""Benchmarks whose free answers a language model reads: MathVista and MM-Vet.

Without a judge they are not scored; a number that is no measurement is never written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.errors import UserError
from common.words import counted, listed
from eval.vlm import judged_mathvista as mathvista
from eval.vlm import judged_mmvet as mmvet
from eval.vlm.benchmarks import Benchmark
from eval.vlm.judge import NO_JUDGE, Judge, Verdict
from eval.vlm.judged_cells import is_choice, skills_of
from eval.vlm.question import Index, Question
from eval.vlm.scoring.scores import Scores, percent
from eval.vlm.table import Table

Row = dict[str, Any]
Members = Iterable[tuple[str, float]]  # name of a part of a benchmark, score of a question that belongs to it


def score_judged(
    benchmark: Benchmark,
    table: Table,
    predictions: Mapping[Index, str],
    judge: Judge | None,
    *,
    allow_incomplete: bool = False,
) -> Scores:
    """Score MathVista or MM-Vet.

    Args:
        benchmark: one of the two.
        table: its questions.
        predictions: index -> the model's answer.
        judge: from `eval.vlm.judge`; None: there is none, and no score.
        allow_incomplete: leave out rows without a prediction, and count as wrong what the judge could not read,
            instead of an error; the notes say how many.

    Returns:
        Metrics in percent. MathVista `{"overall", "task": {}, "skill": {}}`; MM-Vet `{"overall", "category": {},
        "combination": {}}`, the category being one of the six capabilities, a combination all that a question asks for.

    Raises:
        UserError: predictions are missing, the judge failed, or could not read some answers.
    """
    if judge is None:
        return Scores({}, [], 0, (), NO_JUDGE)
    chosen = [question for question in table.questions if question.index in predictions]
    missing = [question.index for question in table.questions if question.index not in predictions]
    if (missing and not allow_incomplete) or not chosen:
        raise UserError(
            f"{len(missing)} of {len(table.questions)} rows of {table.path} are without a prediction: {listed(missing)}"
            "; predict them, or give --allow-incomplete to score what is there"
        )
    notes = [f"left out without a prediction: {counted(len(missing), 'row')}: {listed(missing)}"] if missing else []
    find = _mathvista if benchmark.name == "MathVista_MINI" else _mmvet
    metrics, rows, by_rule = find(chosen, predictions, judge, benchmark.name)
    failed = [row["index"] for row in rows if row["unread"]]
    if failed:
        told = f"the judge {judge.model} gave nothing usable on {len(failed)} of {len(rows)} answers: {listed(failed)}"
        if not allow_incomplete:
            raise UserError(f"{told}; try another judge, or give --allow-incomplete to count them as wrong")
        notes.append(f"{told}; counted as wrong")
    notes.append(f"judged by {judge.model} at {judge.url}: {len(rows) - by_rule} answers; settled by rule: {by_rule}")
    return Scores({"overall": percent(row["hit"] for row in rows), **metrics}, rows, len(rows), notes)


def _mathvista(
    questions: Sequence[Question], predictions: Mapping[Index, str], judge: Judge, label: str
) -> tuple[dict[str, Any], list[Row], int]:
    open_ones = [question for question in questions if not mathvista.is_settled(question, predictions[question.index])]
    prompts = [mathvista.prompt_of(question, predictions[question.index]) for question in open_ones]
    said = judge.ask(prompts, mathvista.read_extraction, label=f"judging {label}")
    verdicts = {question.index: verdict for question, verdict in zip(open_ones, said, strict=True)}
    rows = []
    for question in questions:
        prediction = predictions[question.index]
        verdict = verdicts.get(question.index)
        extracted = prediction if verdict is None else verdict.value
        right = extracted is not None and mathvista.is_right(question, extracted)
        answer = question.fields["answer_option"] if is_choice(question) else question.answer
        rows.append(_row(question, prediction, extracted, answer, right, verdict))
    pairs = list(zip(questions, rows, strict=True))
    metrics = {
        "task": _parts((question.fields["task"], row["hit"]) for question, row in pairs),
        "skill": _parts((skill, row["hit"]) for question, row in pairs for skill in skills_of(question)),
    }
    return metrics, rows, len(questions) - len(open_ones)


def _mmvet(
    questions: Sequence[Question], predictions: Mapping[Index, str], judge: Judge, label: str
) -> tuple[dict[str, Any], list[Row], int]:
    prompts = [mmvet.prompt_of(question, predictions[question.index]) for question in questions]
    verdicts = judge.ask(prompts, mmvet.read_grade, label=f"judging {label}")
    rows = [
        _row(question, predictions[question.index], verdict.value, question.answer, verdict.value or 0.0, verdict)
        for question, verdict in zip(questions, verdicts, strict=True)
    ]
    pairs = list(zip(questions, rows, strict=True))
    metrics = {
        "category": _parts((name, row["hit"]) for question, row in pairs for name in mmvet.capabilities_of(question)),
        "combination": _parts(("_".join(_named(question)), row["hit"]) for question, row in pairs),
    }
    return metrics, rows, 0


def _named(question: Question) -> list[str]:
    return [name.strip() for name in question.category.split(",")]


def _row(
    question: Question, prediction: str, extracted: Any, answer: str, hit: float, verdict: Verdict[Any] | None
) -> Row:
    return {
        "index": question.index,
        "prediction": prediction,
        "extracted": extracted,
        "answer": answer,
        "hit": hit,
        "judged": verdict is not None,
        "judge_said": None if verdict is None else verdict.text,
        "unread": verdict is not None and verdict.value is None,
    }


def _parts(members: Members) -> dict[str, float]:
    """Mean score of every part in percent, in the order of first appearance."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, score in members:
        found[name].append(score)
    return {name: percent(scores) for name, scores in found.items()}
