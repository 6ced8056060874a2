"""Shares with their intervals, and how far raters agree.

P: pairs of pictures; R: raters; K = 3 categories (first method better, tie, second method better); V: votes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Two-sided 95 % of the normal distribution.
Z95 = 1.959963984540054


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share.

    centre = (p + z²/2n) / (1 + z²/n), half width = z/(1 + z²/n) · √(p(1−p)/n + z²/4n²)

    Args:
        successes: how often, 0..n.
        n: of how many independent trials; 0 gives the interval that says nothing.
        z: quantile of the normal distribution.

    Returns:
        lower and upper bound, in [0, 1].

    Source:
        E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    assert 0 <= successes <= n, (successes, n)
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    shrink = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Exactly 0 and 1 at the ends, where rounding would miss them.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Fleiss' kappa, generalised to numbers of raters that differ between pairs.

    Agreement: the mean over the pairs with n_i ≥ 2 of Σ_k n_ik (n_ik − 1) / (n_i (n_i − 1)).
    Chance: Σ_k π_k², π_k the mean over all pairs with a vote of n_ik / n_i.
    With equal n_i this is Fleiss' formula; otherwise every pair weighs the same, whoever many rated it.

    Args:
        counts: (P, K) how many raters put each pair into each category.

    Returns:
        kappa, at most 1; None where it is not defined: no pair has two votes, or all votes are of one category.

    Source:
        J. L. Fleiss, Measuring nominal scale agreement among many raters, Psychological Bulletin 76 (1971);
        K. L. Gwet, Handbook of Inter-Rater Reliability (2014), chapter 2, for unequal numbers.
    """
    rated = [list(row) for row in counts if sum(row) > 0]
    shared = [row for row in rated if sum(row) > 1]
    if not shared:
        return None
    agreement = sum(sum(c * (c - 1) for c in row) / (sum(row) * (sum(row) - 1)) for row in shared) / len(shared)
    categories = range(len(rated[0]))
    marginals = [sum(row[k] / sum(row) for row in rated) / len(rated) for k in categories]
    chance = sum(share * share for share in marginals)
    return None if math.isclose(chance, 1.0) else (agreement - chance) / (1 - chance)


def delta_interval(
    raters: Sequence[int], pairs: Sequence[int], scores: Sequence[int], *, samples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of Δ = share of wins − share of losses, over other raters and other pairs.

    Votes of one rater, and votes on one pair, go together, so that a formula for independent votes would promise too
    much. Raters and pairs are therefore drawn anew, each with replacement, and a vote counts as often as its rater
    times as often as its pair.

    Args:
        raters: (V,) whose vote it is.
        pairs: (V,) on which pair.
        scores: (V,) +1 first method better, 0 tie, −1 second method better.
        samples: how many draws.
        seed: of the draws.

    Returns:
        the 2.5 and 97.5 percentiles; None with fewer than two raters or two pairs.

    Source:
        A. B. Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007).
    """
    rater_names, rater_of = np.unique(np.asarray(raters), return_inverse=True)
    pair_names, pair_of = np.unique(np.asarray(pairs), return_inverse=True)
    if len(rater_names) < 2 or len(pair_names) < 2:
        return None
    n_raters, n_pairs = len(rater_names), len(pair_names)
    votes, sums = np.zeros((n_raters, n_pairs)), np.zeros((n_raters, n_pairs))  # (R, P)
    np.add.at(votes, (rater_of, pair_of), 1.0)
    np.add.at(sums, (rater_of, pair_of), np.asarray(scores, float))
    generator = np.random.default_rng(seed)
    deltas = []
    for _ in range(samples):
        times_rater = generator.multinomial(n_raters, np.full(n_raters, 1 / n_raters))  # (R,)
        times_pair = generator.multinomial(n_pairs, np.full(n_pairs, 1 / n_pairs))  # (P,)
        total = times_rater @ votes @ times_pair
        if total:  # with few votes a draw may hold none
            deltas.append(float(times_rater @ sums @ times_pair / total))
    low, high = np.percentile(deltas, [2.5, 97.5])
    return float(low), float(high)
