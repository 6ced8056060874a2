"""Rank the options of a question by the model's log-likelihood, for models that cannot name a letter.

The text of an option is scored as the answer to the question alone: neither the list of the options nor the request for
a letter is shown. So these scores are never comparable with generated ones, and are kept apart from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from eval.vlm.answering import Answered, Asked, answer_all
from eval.vlm.benchmarks import Benchmark
from eval.vlm.question import Question
from eval.vlm.table import Table
from llava.likelihood import Choice, OptionScore, score_options
from llava.model_base import LlavaBase

FAMILIES = ("choice", "circular", "yes_no")
YES_NO = {"Yes": "Yes", "No": "No"}


def require_options(benchmark: Benchmark) -> None:
    """Refuse a benchmark whose answers are free text."""
    if benchmark.family not in FAMILIES:
        raise UserError(
            f"--answer=likelihood ranks given options, and {benchmark.name} asks for an answer in free words; leave it "
            "out of --benchmarks, or use --answer generate"
        )


def rank(base: LlavaBase, table: Table, benchmark: Benchmark, *, model: str, output: Path, batch_size: int) -> Answered:
    """Let a model choose the likeliest option of every question; a collective call.

    Args:
        base: the model.
        table: the questions.
        benchmark: of the family `choice`, `circular` or `yes_no`.
        model: hash of the weights, from `llava.model_open.identity`.
        output: JSON lines of `{"index", "prediction", "prediction_by_sum", "scores"}`: the letter (or Yes or No) of the
            largest log-probability per token, that of the largest sum, and both for every option.
        batch_size: questions at once in one process; each takes as many rows as it has options.

    Raises:
        UserError: another family, an output that cannot be written, or a batch that does not fit into memory.
    """
    require_options(benchmark)
    key = f"likelihood {model} {base.template} {base.precision}"
    return answer_all(Ranker(base, benchmark), table, key=key, output=output, batch_size=batch_size)


def predictions_by_sum(answered: Answered) -> dict[Any, str]:
    """Index of the question -> the option of the largest sum, which favours short ones."""
    return {index: row["prediction_by_sum"] for index, row in answered.rows.items()}


class Ranker:
    """Answers with the likeliest option.

    Args:
        base: the model.
        benchmark: what the questions are.
    """

    def __init__(self, base: LlavaBase, benchmark: Benchmark) -> None:
        self._base, self._yes_no = base, benchmark.family == "yes_no"
        self.description = f"{benchmark.name}, likelihood"

    def prompt(self, question: Question) -> str:
        """The question with its options as JSON: all that the scores follow from."""
        return json.dumps([_asked(question), self._options(question)], ensure_ascii=False)

    def answer(self, batch: Sequence[Asked]) -> list[dict[str, Any]]:
        """The choices of one batch, with all scores.

        What is asked of one picture in the same words, as in the rotations of MMBench, is scored once.
        """
        asked = [(_asked(each.question), each.key) for each in batch]
        questions = [each.question for each in batch]
        texts: dict[tuple[str, bytes], dict[str, None]] = {}
        for each, question in zip(asked, questions, strict=True):
            texts.setdefault(each, {}).update(dict.fromkeys(self._options(question).values()))
        picture_of = {each.key: each.picture for each in batch}
        choices = [Choice(words, list(options), picture_of[key]) for (words, key), options in texts.items()]
        found = score_options(self._base, choices, batch_size=max(1, len(choices)), show_progress=False)
        scores = {
            each: dict(zip(options, values, strict=True))
            for (each, options), values in zip(texts.items(), found, strict=True)
        }
        return [
            self._row({letter: scores[each][text] for letter, text in self._options(question).items()})
            for each, question in zip(asked, questions, strict=True)
        ]

    def _row(self, scores: Mapping[str, OptionScore]) -> dict[str, Any]:
        mean = {name: score.mean for name, score in scores.items()}
        total = {name: score.total for name, score in scores.items()}
        return {
            "prediction": _largest(mean),
            "prediction_by_sum": _largest(total),
            "scores": {"mean": mean, "sum": total},
        }

    def _options(self, question: Question) -> Mapping[str, str]:
        return YES_NO if self._yes_no else question.options


def _largest(values: dict[str, float]) -> str:
    return max(values, key=lambda name: values[name])


def _asked(question: Question) -> str:
    return f"{question.hint}\n{question.text}" if question.hint else question.text
