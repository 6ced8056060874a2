"""Means of a few subjects and how far they can be trusted: Student's t intervals.

A t interval rather than a bootstrap: with three subjects, and often there are no more, resampling them gives intervals
that are far too narrow.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its confidence interval.

    Args:
        mean: over the values.
        half: half of the interval's width: the mean lies within mean ± half; None for a single value.
        n: how many values.
    """

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half is None else self.mean + self.half


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean and t interval of at least one value that may be taken for a draw from a normal distribution."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, None, len(values))
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, t_quantile((1 + confidence) / 2, len(values) - 1) * error, len(values))


def t_quantile(probability: float, freedom: int) -> float:
    """The value that Student's t stays below with a probability.

    Args:
        probability: in [0.5, 1).
        freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_probability(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_probability(value: float, freedom: int) -> float:
    """The probability that Student's t is below `value` ≥ 0; the finite sums of Abramowitz and Stegun, 26.7.3-4."""
    angle = math.atan(value / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    if freedom % 2:
        term, total = cosine, cosine * (freedom > 1)
        for step in range(3, freedom - 1, 2):
            term *= cosine**2 * (step - 1) / step
            total += term
        within = 2 / math.pi * (angle + sine * total)
    else:
        term, total = 1.0, 1.0
        for step in range(2, freedom - 1, 2):
            term *= cosine**2 * (step - 1) / step
            total += term
        within = sine * total
    return (1 + within) / 2
