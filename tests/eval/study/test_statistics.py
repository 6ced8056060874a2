"""Intervals and agreement against published values and independent transcriptions."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest

from eval.study.statistics import delta_interval, fleiss_kappa, wilson

# Fleiss' example as Wikipedia prints it: 10 subjects, 14 raters, 5 categories; kappa 0.210 (P 0.378, Pe 0.213).
TEXTBOOK = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_newcombes_published_ones(successes: int, n: int, low: float, high: float) -> None:
    # 5e-5: printed with four decimals
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 7), (50, 100), (999, 1000)])
def test_wilson_bounds_solve_the_score_equation(successes: int, n: int) -> None:
    # The definition: the bounds are the p with |share - p| = z sqrt(p (1 - p) / n).
    for bound in wilson(successes, n):
        gap = abs(successes / n - bound)
        # 1e-9: double precision beside squared terms
        assert gap == pytest.approx(1.959963984540054 * math.sqrt(bound * (1 - bound) / n), abs=1e-9)


def test_nothing_observed_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_fleiss_kappa_of_the_textbook_example_is_0_210() -> None:
    assert fleiss_kappa(TEXTBOOK) == pytest.approx(0.210, abs=5e-4)  # printed with three decimals


def fleiss_1971(counts: list[list[int]]) -> Fraction:
    """The formula of 1971 for n raters each, in exact fractions."""
    subjects, raters = len(counts), sum(counts[0])
    p_j = [Fraction(sum(row[j] for row in counts), subjects * raters) for j in range(len(counts[0]))]
    p_i = [Fraction(sum(c * c for c in row) - raters, raters * (raters - 1)) for row in counts]
    agreement, chance = sum(p_i) / subjects, sum(p * p for p in p_j)
    return (agreement - chance) / (1 - chance)


def test_with_as_many_raters_for_each_pair_it_is_the_formula_of_1971() -> None:
    dice = random.Random(0)
    for _ in range(50):
        counts = []
        for _ in range(dice.randint(2, 12)):
            votes = [dice.choice((0, 0, 1, 2)) for _ in range(5)]
            counts.append([votes.count(category) for category in range(3)])
        if len({tuple(row) for row in counts}) > 1:
            assert fleiss_kappa(counts) == pytest.approx(float(fleiss_1971(counts)), abs=1e-12)  # double precision


def test_unequal_numbers_of_raters_weigh_each_pair_alike() -> None:
    # By hand: agreement (1 + 0 + 1/3) / 3 over the pairs with two votes or more; shares (1, 1/2, 2/3, 0) and
    # (0, 1/2, 1/3, 1) over all four, so chance = (13/24)² + (11/24)².
    counts = [[4, 0, 0], [1, 0, 1], [2, 0, 1], [0, 0, 1]]
    chance = Fraction(13, 24) ** 2 + Fraction(11, 24) ** 2
    expected = (Fraction(4, 9) - chance) / (1 - chance)
    assert fleiss_kappa(counts) == pytest.approx(float(expected), abs=1e-12)


def test_perfect_agreement_is_one() -> None:
    assert fleiss_kappa([[3, 0, 0], [0, 0, 3]]) == 1.0


@pytest.mark.parametrize("counts", [[], [[1, 0, 0], [0, 1, 0]], [[3, 0, 0], [4, 0, 0]], [[0, 0, 0]]])
def test_kappa_is_not_made_up_where_it_is_not_defined(counts: list[list[int]]) -> None:
    assert fleiss_kappa(counts) is None


def test_delta_interval_holds_the_truth_as_often_as_it_says() -> None:
    # 100 studies of 12 raters × 15 pairs without any difference, in which raters and pairs have leanings of their own.
    # Expected 95; the bootstrap of few raters is known to be somewhat short or long, and 86 is 4 deviations below.
    dice, inside = random.Random(1), 0
    for study in range(100):
        taste = [dice.gauss(0, 0.3) for _ in range(12)]
        pair = [dice.gauss(0, 0.8) for _ in range(15)]
        cells = [(r, p) for r in range(12) for p in range(15)]
        scores = [_score(taste[r] + pair[p] + dice.gauss(0, 1)) for r, p in cells]
        low, high = delta_interval([r for r, _ in cells], [p for _, p in cells], scores, samples=200, seed=study) or (
            1,
            1,
        )
        inside += low <= 0 <= high
    assert inside >= 86


def _score(value: float) -> int:
    return 0 if abs(value) < 0.3 else 1 if value > 0 else -1


def test_delta_interval_is_wider_where_votes_go_together() -> None:
    # The same shares; once every rater has one opinion about all pairs, once raters differ within themselves.
    raters = [r for r in range(10) for _ in range(20)]
    pairs = [p for _ in range(10) for p in range(20)]
    together = [1 if r < 6 else -1 for r in raters]
    apart = [1 if (r + p) % 10 < 6 else -1 for r, p in zip(raters, pairs, strict=True)]
    assert sum(together) == sum(apart)
    wide, narrow = delta_interval(raters, pairs, together), delta_interval(raters, pairs, apart)
    assert wide is not None
    assert narrow is not None
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])


def test_one_rater_or_one_pair_gives_no_interval() -> None:
    assert delta_interval([1, 1], [1, 2], [1, 0]) is None
    assert delta_interval([1, 2], [1, 1], [1, 0]) is None
    assert delta_interval([], [], []) is None
