"""What scoring finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scores:
    """The scores of one benchmark.

    Args:
        metrics: accuracies in percent, unrounded; their form depends on the family (`eval.vlm.scoring.score`).
        rows: one entry per scored row: `index`, `prediction`, what was read out of it, `answer` and whether it hit.
        n: how many items the main figure is a mean over: questions of circular evaluation, else rows.
        notes: in a line each what was left out or is odd.
        not_scored: why there are no metrics; None where there are.
    """

    metrics: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    n: int
    notes: Sequence[str] = field(default_factory=tuple)
    not_scored: str | None = None


def percent(hits: Iterable[float]) -> float:
    """The mean of values from 0 to 1, of which there is at least one, in percent."""
    values = list(hits)
    return 100.0 * sum(values) / len(values)
