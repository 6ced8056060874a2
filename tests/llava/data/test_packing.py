import numpy as np
import pytest

from llava.data.packing import pack


def realistic_lengths(n: int, seed: int = 0) -> np.ndarray:
    """LLaVA's mix in tokens: a picture of 576 and a conversation of log-normal length, or text alone."""
    rng = np.random.default_rng(seed)
    text = np.clip(np.exp(rng.normal(5.0, 0.8, n)), 20, 1472).astype(int)
    return np.where(rng.random(n) < 0.94, 576, 0) + text


def first_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """Rows needed, by the definition."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        for row, left in enumerate(room):
            if left >= length:
                room[row] -= length
                break
        else:
            room.append(capacity - length)
    return len(room)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "capacity"), [(1, 10), (2, 10), (17, 30), (300, 100), (1000, 2048)])
def test_packing_is_first_fit_decreasing_and_loses_nothing(n: int, capacity: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, min(capacity, 2000) + 1, n)
    members, starts = pack(lengths, capacity, seed)
    assert sorted(members.tolist()) == list(range(n))
    assert (starts[0], starts[-1]) == (0, n)
    sums = np.add.reduceat(lengths[members], starts[:-1])
    assert sums.max() <= capacity
    assert (np.diff(starts) > 0).all()
    assert len(starts) - 1 == first_fit_decreasing(lengths.tolist(), capacity)


def test_rows_of_a_realistic_mix_are_full() -> None:
    lengths = realistic_lengths(20_000)
    _, starts = pack(lengths, 4096, 0)
    assert lengths.sum() / (4096 * (len(starts) - 1)) >= 0.95


def test_seed_decides_and_nothing_else() -> None:
    lengths = realistic_lengths(500)
    first, again, other = pack(lengths, 2048, 0), pack(lengths, 2048, 0), pack(lengths, 2048, 1)
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != other[0]).any()


def test_rows_are_mixed() -> None:
    """Neither long items first nor the nearly empty rows last."""
    lengths = realistic_lengths(5_000)
    members, starts = pack(lengths, 2048, 0)
    items = np.diff(starts)
    half = len(items) // 2
    assert abs(items[:half].mean() - items[half:].mean()) < 0.2
    firsts = lengths[members[starts[:-1]]]
    assert abs(firsts.mean() - lengths.mean()) < 0.1 * lengths.mean()
