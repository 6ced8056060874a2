"""MME: two questions about each picture, one whose answer is yes and one whose answer is no.

A category gives 100 · accuracy + 100 · accuracy⁺, where accuracy⁺ counts pictures whose two questions are both right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from common.words import listed
from eval.vlm.question import Index, Question, groups_of
from eval.vlm.scoring.scores import Scores, percent
from eval.vlm.scoring.words import strip_punctuation

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
# 14 categories of 200; [M] Table 5 prints the total as a share of it.
HIGHEST = 200 * (len(PERCEPTION) + len(COGNITION))


def extract_yes_no(text: str) -> str | None:
    """`Yes` or `No`, whichever of the two words stands in an answer; None where both or neither do."""
    words = strip_punctuation(text.lower()).split()
    yes, no = "yes" in words, "no" in words
    return None if yes == no else "Yes" if yes else "No"


def incomplete_pairs(questions: Sequence[Question]) -> dict[Index, str]:
    """Pictures with a single question: group -> how many there are, in words."""
    return {group: "1 question" for group, members in groups_of(questions).items() if len(members) == 1}


def score_yes_no(questions: Sequence[Question], predictions: Mapping[Index, str]) -> Scores:
    """MME's sums.

    Of a picture with more than two questions accuracy⁺ looks at the first two, as VLMEvalKit does; one with a single
    question counts for the accuracy alone, which `eval.vlm.scoring.score` only lets happen when it is told to.

    Args:
        questions: those to score, each with a prediction.
        predictions: index -> the model's answer.

    Returns:
        metrics `{"perception", "cognition", "total", "scaled", "category": {...}}`; `scaled` is the total as a
        percentage of 2800. Categories that the table lacks add nothing to the sums and are named in
        `missing_categories`; those that MME does not know are in `category` alone.
    """
    rows = {question.index: _row(question, predictions[question.index]) for question in questions}
    by_category: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_category[question.category].append(question)
    category = {name: _points(of_name, rows) for name, of_name in by_category.items()}
    perception, cognition = (sum(category.get(name, 0.0) for name in names) for names in (PERCEPTION, COGNITION))
    total = perception + cognition
    metrics: dict[str, Any] = {
        "perception": perception,
        "cognition": cognition,
        "total": total,
        "scaled": 100.0 * total / HIGHEST,
        "category": {name: category[name] for name in (*PERCEPTION, *COGNITION) if name in category}
        | {name: points for name, points in category.items() if name not in (*PERCEPTION, *COGNITION)},
    }
    notes = []
    missing = [name for name in (*PERCEPTION, *COGNITION) if name not in category]
    if missing:
        metrics["missing_categories"] = missing
        notes.append(f"the table lacks {len(missing)} of MME's 14 categories, which add nothing: {', '.join(missing)}")
    unknown = [name for name in category if name not in (*PERCEPTION, *COGNITION)]
    if unknown:
        notes.append(f"categories that MME does not have, in no sum: {listed(unknown)}")
    return Scores(metrics, list(rows.values()), len(rows), notes)


def _row(question: Question, prediction: str) -> dict[str, Any]:
    extracted = extract_yes_no(prediction)
    return {
        "index": question.index,
        "prediction": prediction,
        "extracted": extracted,
        "answer": question.answer,
        "hit": extracted is not None and extracted.lower() == question.answer.lower(),
        "group": question.group,
    }


def _points(questions: Sequence[Question], rows: Mapping[Index, Mapping[str, Any]]) -> float:
    pairs = [members[:2] for members in groups_of(questions).values() if len(members) > 1]
    both = [all(rows[member.index]["hit"] for member in pair) for pair in pairs]
    return percent(rows[question.index]["hit"] for question in questions) + (percent(both) if both else 0.0)
