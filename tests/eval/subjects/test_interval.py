"""Student's t against the tables that everybody has, and by simulation."""

import numpy as np
import pytest

from eval.subjects.interval import estimate, t_probability, t_quantile

# upper 2.5 % points, as printed in statistical tables
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 29: 2.045, 30: 2.042, 60: 2.000, 120: 1.980}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_those_of_the_tables(freedom: int) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(TABLE[freedom], abs=5e-4)  # printed with three decimals
    assert t_probability(t_quantile(0.975, freedom), freedom) == pytest.approx(0.975, abs=1e-12)


def test_other_quantiles() -> None:
    assert t_quantile(0.95, 10) == pytest.approx(1.812, abs=5e-4)
    assert t_quantile(0.995, 10) == pytest.approx(3.169, abs=5e-4)
    assert t_quantile(0.5, 4) == pytest.approx(0.0, abs=1e-12)


def test_an_estimate_is_the_mean_and_the_textbook_interval() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.n == 4
    # s = 1.29099, s/√4 = 0.645497, t(3) = 3.182446
    assert found.half == pytest.approx(2.054260, abs=1e-5)
    assert (found.low, found.high) == (pytest.approx(0.44574, abs=1e-4), pytest.approx(4.55426, abs=1e-4))


def test_a_single_value_has_no_interval() -> None:
    found = estimate([0.3])
    assert (found.mean, found.half, found.low, found.high, found.n) == (0.3, None, None, None, 1)


def test_intervals_of_three_draws_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    draws = rng.normal(0.6, 0.1, (2000, 3))
    covered = sum(abs(found.mean - 0.6) <= (found.half or 0) for found in map(estimate, draws.tolist()))
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)  # three standard errors
