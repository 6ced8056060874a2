"""What a rater is asked about a pair, and the answers there are ([M] Table 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["left", "tie", "right"]
Result = Literal["first", "tie", "second"]
SIDES: tuple[Side, ...] = ("left", "tie", "right")
RESULTS: tuple[Result, ...] = ("first", "tie", "second")


@dataclass(frozen=True)
class Question:
    """One question about two pictures.

    Args:
        key: its name in the database and in results.
        label: a heading in tables.
        text: what the rater reads.
        hint: what counts and what does not.
    """

    key: str
    label: str
    text: str
    hint: str


QUESTIONS = (
    Question(
        "subject_similarity",
        "subject similarity",
        "Which picture shows the subject more faithfully?",
        "Its shape, colours and details; not its surroundings.",
    ),
    Question(
        "prompt_consistency",
        "prompt consistency",
        "Which picture agrees better with the description?",
        "What is described, all of it and nothing against it; not how pretty it is.",
    ),
)


def result_of(side: Side, swapped: bool) -> Result:
    """The answer in terms of methods; `swapped`: the first method's picture stood on the right."""
    if side == "tie":
        return "tie"
    return "first" if (side == "left") is not swapped else "second"


def side_of(result: Result, swapped: bool) -> Side:
    """The answer as the rater gave it, the inverse of `result_of`."""
    if result == "tie":
        return "tie"
    return "left" if (result == "first") is not swapped else "right"
