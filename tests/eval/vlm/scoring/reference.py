"""VLMEvalKit's rules once more, read off its documentation of them (DESIGN 6.2) and written without the product's code.

Deliberately plain: loops and lists, one rule after the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

REFUSALS = [
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
]


def letter(text: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer means."""
    by_api = "Failed to obtain answer via API" in text
    if not by_api:
        for phrase in REFUSALS:
            if phrase in text:
                return None
        spaced = text
        for mark in ".()[],:;!*#{}":
            spaced = spaced.replace(mark, " ")
        tokens = spaced.split()
        present = [option for option in options if option in tokens]
        if len(present) == 1:
            first = tokens.index(present[0])
            if len(tokens) - first <= 4:
                return present[0]
        elif len(present) == 0 and "Z" in tokens:
            return None
        match = re.search(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", text)
        if match is not None and match[1].upper() in options:
            return match[1].upper()
    low = text.lower()
    total = 0
    for option in options.values():
        total += len(option)
    if len(low) > 2 * total:
        return None
    inside = [key for key, option in options.items() if option.lower() in low]
    return inside[0] if len(inside) == 1 else None


def circular(rows: Sequence[Mapping[str, Any]], predictions: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    """Percent of questions whose rotations are all right, per split, overall and per ability."""
    right: dict[int, bool] = {}
    for row in rows:
        group = row["index"] % 1_000_000
        options = {key: row[key] for key in "ABCDEF" if row.get(key, "") != ""}
        hit = letter(predictions[row["index"]], options) == row["answer"]
        right[group] = right.get(group, True) and hit
    bases = [row for row in rows if row["index"] < 1_000_000]
    found: dict[str, dict[str, Any]] = {}
    for split in {row["split"] for row in bases}:
        of_split = [row for row in bases if row["split"] == split]
        found[split] = {"overall": mean([right[row["index"]] for row in of_split])}
        for key in ("category", "l2-category"):
            found[split][key] = {
                name: mean([right[row["index"]] for row in of_split if row[key] == name])
                for name in {row[key] for row in of_split}
            }
    return found


def mean(hits: Sequence[float]) -> float:
    """In percent."""
    return 100 * sum(hits) / len(hits)


def mme(rows: Sequence[Mapping[str, Any]], said: Mapping[int, str | None]) -> dict[str, float]:
    """Points per category, `said` being Yes, No or None."""
    found = {}
    for category in {row["category"] for row in rows}:
        of = [row for row in rows if row["category"] == category]
        pictures: dict[str, list[int]] = {}
        for row in of:
            pictures.setdefault(row["image_path"], []).append(int(said[row["index"]] == row["answer"]))
        singles = [hit for hits in pictures.values() for hit in hits]
        found[category] = mean(singles) + mean([first * second for first, second in pictures.values()])
    return found


def agreement(answer: str, people: Sequence[str]) -> float:
    """VQA accuracy of one answer, both sides normalised."""
    parts = []
    for left_out in range(len(people)):
        others = [text for at, text in enumerate(people) if at != left_out]
        parts.append(min(1, len([text for text in others if text == answer]) / 3))
    return sum(parts) / len(parts)
