"""Scores of predictions, by the rules with which VLMEvalKit matches exactly; one module per family of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.errors import UserError
from common.words import counted, listed
from eval.vlm.benchmarks import Benchmark
from eval.vlm.question import Index, Question, incomplete_sets
from eval.vlm.scoring.choice import score_choice
from eval.vlm.scoring.circular import score_circular
from eval.vlm.scoring.letters import extract_choice
from eval.vlm.scoring.scores import Scores
from eval.vlm.scoring.vqa import score_vqa
from eval.vlm.scoring.yes_no import extract_yes_no, incomplete_pairs, score_yes_no
from eval.vlm.table import Table

__all__ = ["Scores", "check_scorable", "extract_choice", "extract_yes_no", "main_figure", "score"]

_BY_FAMILY = {"choice": score_choice, "circular": score_circular, "vqa": score_vqa, "yes_no": score_yes_no}
NO_ANSWERS = "the table has no answers"


def score(
    benchmark: Benchmark,
    table: Table,
    predictions: Mapping[Index, str],
    *,
    allow_incomplete: bool = False,
    judge: Any = None,
) -> Scores:
    """Score predictions.

    Args:
        benchmark: decides the rules.
        table: the questions, read as a table of `benchmark`.
        predictions: index as in the table -> the model's answer; of no other rows.
        allow_incomplete: score what is there. Rows without a prediction or without an answer are left out; a question
            of circular evaluation is judged by the rotations that are there, and left out without the unrotated one;
            an MME picture with one question counts for the accuracy alone. The notes say how many.
        judge: of MathVista and MM-Vet, from `eval.vlm.judge`.

    Returns:
        Scores with metrics of these forms, accuracies in percent:
        circular `{split: {"overall", "category": {}, "l2-category": {}}}` with split `none` where the table has none;
        choice the same where the table names splits, else the inner part alone; `category` and `l2-category` only
        where the table has them; yes_no `{"perception", "cognition", "total", "scaled", "category": {}}`;
        vqa `{"accuracy"}`; judged: see `eval.vlm.judged`.

    Raises:
        UserError: something is missing and `allow_incomplete` is off; the message names the rows.
    """
    if benchmark.family == "judged":
        from eval.vlm.judged import score_judged  # needs a client of the judge, which others do not

        return score_judged(benchmark, table, predictions, judge, allow_incomplete=allow_incomplete)
    if not table.has_answers:
        return Scores({}, [], 0, (), NO_ANSWERS)
    check_scorable(benchmark, table, allow_incomplete=allow_incomplete)
    chosen = [question for question in table.questions if question.index in predictions]
    notes = _left_out(table, "without a prediction", chosen, allow_incomplete)
    answered = [question for question in chosen if question.answer]
    if not answered:
        raise UserError(f"there is no prediction for any row of {table.path}")
    found = _BY_FAMILY[benchmark.family](answered, predictions)
    if not found.n:
        raise UserError(f"none of the questions of {table.path} has its unrotated row and a prediction for it")
    if allow_incomplete:
        notes += _incomplete_notes(benchmark, table, answered)
    return replace(found, notes=[*notes, *found.notes])


def check_scorable(benchmark: Benchmark, table: Table, *, allow_incomplete: bool = False) -> None:
    """Make sure that predictions for a whole table can be scored; worth doing before there are any.

    Raises:
        UserError: rotations, questions or answers are missing and `allow_incomplete` is off; the message names them.
    """
    if allow_incomplete or not table.has_answers:
        return
    missing = _incomplete(benchmark, table.questions)
    if missing:
        what = {"circular": "the rotations of {} questions", "yes_no": "MME's two questions about {} pictures"}
        shown = listed(f"{group} ({reason})" for group, reason in missing.items())
        raise UserError(
            f"{table.path}: {what[benchmark.family].format(len(missing))} are not all there: {shown}; use the whole "
            "table, or give --allow-incomplete to score what is there"
        )
    silent = [question.index for question in table.questions if not question.answer]
    if silent and benchmark.family != "judged":
        raise UserError(
            f"{table.path}: {counted(len(silent), 'row')} without an answer: {listed(silent)}; give --allow-incomplete "
            "to leave them out"
        )


def main_figure(benchmark: Benchmark, metrics: Mapping[str, Any]) -> tuple[str, float] | None:
    """The one number of a benchmark that [M] Table 5 prints, in percent, with its name; None without metrics.

    Of several splits it is that of `test`, else of the first.
    """
    if not metrics:
        return None
    if benchmark.family in ("choice", "circular"):
        if "overall" in metrics:
            return "overall", metrics["overall"]
        split = "test" if "test" in metrics else next(iter(metrics))
        return f"{split} overall", metrics[split]["overall"]
    key = {"yes_no": "scaled", "vqa": "accuracy", "judged": "overall"}[benchmark.family]
    return key, metrics[key]


def _incomplete(benchmark: Benchmark, questions: Sequence[Question]) -> dict[Index, str]:
    find = {"circular": incomplete_sets, "yes_no": incomplete_pairs}.get(benchmark.family)
    return find(questions) if find else {}


def _incomplete_notes(benchmark: Benchmark, table: Table, answered: Sequence[Question]) -> list[str]:
    missing = _incomplete(benchmark, answered)
    what = {"circular": "not all of the rotations", "yes_no": "one question about a picture where MME asks two"}
    notes = [f"{what[benchmark.family]}: {counted(len(missing), 'question')}: {listed(missing)}"] if missing else []
    silent = [question.index for question in table.questions if not question.answer]
    return notes + ([f"left out without an answer: {counted(len(silent), 'row')}: {listed(silent)}"] if silent else [])


def _left_out(table: Table, why: str, chosen: list[Question], allowed: bool) -> list[str]:
    there = {question.index for question in chosen}
    missing = [question.index for question in table.questions if question.index not in there]
    if not missing:
        return []
    if not allowed:
        raise UserError(
            f"{len(missing)} of {len(table.questions)} rows of {table.path} are {why}: {listed(missing)}; predict "
            "them, or give --allow-incomplete to score what is there"
        )
    return [f"left out {why}: {counted(len(missing), 'row')}: {listed(missing)}"]
