"""One question of a benchmark, as its row in the table says."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# A rotation of a circular question has the index of the question plus this times the number of the rotation.
ROTATION = 1_000_000
# What names a row: a whole number where all of a table's are, else text.
Index = int | str
_WHOLE = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Question:
    """One row of a table.

    Args:
        index: names the row; a whole number where every index of the table is one.
        line: of the file where the row begins, from 1.
        text: the question itself.
        hint: what stands before it, "" where there is none.
        options: letter -> text of multiple choice, empty for the other families. An empty cell is no option; `None`
            and `NA` are.
        answer: the cell as it is, "" where the table has none.
        category: the ability that is asked for, "" where unknown.
        l2_category: the broad ability that it belongs to (MMBench has six), "" where unknown.
        split: such as `dev`, "" where the table has none.
        group: what is scored together: the unrotated question (circular), category and picture (yes_no), else `index`.
        fields: every cell of the row but the picture, by the column's name in lower case.
    """

    index: Index
    line: int
    text: str
    hint: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    answer: str = ""
    category: str = ""
    l2_category: str = ""
    split: str = ""
    group: Index = ""
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """How messages name the row."""
        return f"index {self.index} (line {self.line})"


def whole_number(value: Any) -> int | None:
    """`value` as an int where it is one, also as text; None otherwise."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        with contextlib.suppress(ValueError):  # thousands of digits
            return int(value)
    return None


def groups_of(questions: Iterable[Question]) -> dict[Index, list[Question]]:
    """The questions that are scored together, by their group, in the order of the table."""
    found: dict[Index, list[Question]] = defaultdict(list)
    for question in questions:
        found[question.group].append(question)
    return dict(found)


def incomplete_sets(questions: Iterable[Question]) -> dict[Index, str]:
    """Circular questions that are not asked once for each of their options.

    A question with k options is asked k times, each time with the options moved on by one place.

    Returns:
        group -> what is missing, in a few words.
    """
    found = {}
    for group, members in groups_of(questions).items():
        base = next((member for member in members if member.index == group), None)
        if base is None:
            found[group] = "its unrotated row is missing"
        elif len(members) < len(base.options):
            found[group] = f"{len(members)} of {len(base.options)} rotations"
    return found
