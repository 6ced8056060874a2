"""First-fit-decreasing packing of lengths into rows of equal capacity."""

from __future__ import annotations

import numpy as np


def pack(lengths: np.ndarray, capacity: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Deal items into as few rows as first-fit-decreasing needs (at most 11/9 of the fewest, plus one).

    Args:
        lengths: (N,) whole numbers in [1, capacity].
        capacity: of a row.
        seed: order of items of equal length, and of the rows and the items within a row.

    Returns:
        members (N,) int64: the items, row after row; starts (rows + 1,) int64: where each row begins in it.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    assert len(sizes), "nothing to pack"
    assert sizes.min() >= 1
    assert sizes.max() <= capacity, "an item is larger than a row"
    random = np.random.default_rng([seed, capacity])
    shuffled = random.permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    rows = _first_fit(sizes[order].tolist(), capacity)
    dealt: list[list[int]] = [[] for _ in range(max(rows) + 1)]
    for item, row in zip(order.tolist(), rows, strict=True):
        dealt[row].append(item)
    # The rows that first-fit closes last hold only short items; training must not see those together.
    mixed = [random.permutation(dealt[row]) for row in random.permutation(len(dealt))]
    starts = np.cumsum([0, *map(len, mixed)])
    return np.concatenate(mixed), starts


def _first_fit(sizes: list[int], capacity: int) -> list[int]:
    """The first row with room for each item, in a binary tree over the rows' room: O(N log N)."""
    leaves = 1 << max(1, (len(sizes) - 1).bit_length())
    room = [capacity] * (2 * leaves)  # room[i] = max(room[2i], room[2i + 1])
    rows = []
    for size in sizes:
        at = 1
        while at < leaves:
            at = 2 * at if room[2 * at] >= size else 2 * at + 1
        rows.append(at - leaves)
        room[at] -= size
        while at > 1:
            at //= 2
            room[at] = max(room[2 * at], room[2 * at + 1])
    return rows
