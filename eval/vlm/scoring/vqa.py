"""VQA accuracy (TextVQA): how many of ten people gave the model's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.vlm.question import Index, Question
from eval.vlm.rows import answers_of
from eval.vlm.scoring.scores import Scores, percent
from eval.vlm.scoring.words import normalise

# So many people who agree make an answer fully right.
_AGREE = 3


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Agreement of one answer with those of people, from 0 to 1.

    Each person is left out once, and min(1, others who gave the answer / 3) is averaged over that.

    Args:
        prediction: normalised.
        answers: normalised, at least two.
    """
    total = 0.0
    same = sum(answer == prediction for answer in answers)
    for answer in answers:
        total += min(1.0, (same - (answer == prediction)) / _AGREE)
    return total / len(answers)


def score_vqa(questions: Sequence[Question], predictions: Mapping[Index, str]) -> Scores:
    """VQA accuracy over all questions.

    Args:
        questions: those to score, each with a prediction.
        predictions: index -> the model's answer.

    Returns:
        metrics `{"accuracy"}`.
    """
    rows: list[dict[str, Any]] = []
    for question in questions:
        answers = answers_of(question.answer)
        assert answers is not None  # the table was checked
        prediction = predictions[question.index]
        extracted = normalise(prediction)
        rows.append(
            {
                "index": question.index,
                "prediction": prediction,
                "extracted": extracted,
                "answer": answers,
                "hit": vqa_accuracy(extracted, [normalise(answer) for answer in answers]),
            }
        )
    return Scores({"accuracy": percent(row["hit"] for row in rows)}, rows, len(rows))
