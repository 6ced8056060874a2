"""Multiple choice, each row by itself: SEED-Bench, AI2D, ScienceQA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.vlm.question import Index, Question
from eval.vlm.scoring.abilities import accuracy, per_split
from eval.vlm.scoring.letters import extract_choice
from eval.vlm.scoring.scores import Scores


def row_of(question: Question, prediction: str) -> dict[str, Any]:
    """What became of one answer."""
    extracted = extract_choice(prediction, question.options)
    return {
        "index": question.index,
        "prediction": prediction,
        "extracted": extracted,
        "answer": question.answer,
        "hit": extracted is not None and extracted == question.answer,
    }


def score_choice(questions: Sequence[Question], predictions: Mapping[Index, str]) -> Scores:
    """Accuracy of multiple choice.

    Args:
        questions: those to score, each with a prediction.
        predictions: index -> the model's answer.

    Returns:
        metrics `{"overall", "category", "l2-category"}`, in a dictionary of splits where the table names splits.
    """
    rows = [row_of(question, predictions[question.index]) for question in questions]
    hits = [(question, bool(row["hit"])) for question, row in zip(questions, rows, strict=True)]
    split = any(question.split for question in questions)
    return Scores(per_split(hits) if split else accuracy(hits), rows, len(rows))
