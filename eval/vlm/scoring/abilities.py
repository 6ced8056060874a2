"""Accuracy overall and per ability, of all rows or of each split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from eval.vlm.question import Question
from eval.vlm.scoring.scores import percent

# VLMEvalKit's name for the only split of a table without that column.
NO_SPLIT = "none"
Hit = tuple[Question, bool]


def accuracy(hits: Sequence[Hit]) -> dict[str, Any]:
    """Percent right of `hits`, which are not empty.

    Returns:
        `overall`, and `category` and `l2-category` as name -> percent where any row names one.
    """
    found: dict[str, Any] = {"overall": percent(hit for _, hit in hits)}
    for key, attribute in (("category", "category"), ("l2-category", "l2_category")):
        by_name: dict[str, list[bool]] = defaultdict(list)
        for question, hit in hits:
            by_name[getattr(question, attribute)].append(hit)
        by_name.pop("", None)
        if by_name:
            found[key] = {name: percent(by_name[name]) for name in sorted(by_name)}
    return found


def per_split(hits: Sequence[Hit]) -> dict[str, dict[str, Any]]:
    """`accuracy` of each split, in the order of the table; `NO_SPLIT` for rows that name none."""
    by_split: dict[str, list[Hit]] = defaultdict(list)
    for question, hit in hits:
        by_split[question.split or NO_SPLIT].append((question, hit))
    return {split: accuracy(of_split) for split, of_split in by_split.items()}
