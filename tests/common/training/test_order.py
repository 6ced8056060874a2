"""The data order: the same global batches however the work is divided."""

import numpy as np
import pytest
import torch

from common.training.order import EpochOrder, KeyedCollate, ShareSampler, split_evenly


def global_batches(order: EpochOrder, steps: int, accumulation: int, world_size: int) -> list[list[tuple[int, int]]]:
    """The samples of each step, put together from what all processes get; fillers left out."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(steps)]
    for rank in range(world_size):
        for number, keys in enumerate(ShareSampler(order, 0, steps, accumulation, rank, world_size)):
            found[number // accumulation] += [(key.epoch, key.sample) for key in keys if not key.filler]
    return found


@pytest.mark.parametrize(("accumulation", "world_size"), [(2, 1), (8, 1), (1, 2), (2, 4), (1, 8)])
def test_every_division_sees_the_same_global_batches(accumulation: int, world_size: int) -> None:
    order = EpochOrder(size=29, batch_size=8, seed=5)
    assert global_batches(order, 9, accumulation, world_size) == global_batches(order, 9, 1, 1)


def test_an_epoch_holds_every_sample_once_and_epochs_differ() -> None:
    order = EpochOrder(size=29, batch_size=8, seed=5)
    epochs = [[i for step in range(4) for i in order.batch(4 * epoch + step)[1]] for epoch in range(2)]
    assert all(sorted(epoch) == list(range(29)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert order.steps_per_epoch == 4
    assert order.batch(4)[0] == 1


def test_every_process_gets_the_same_number_of_micro_batches_and_none_is_empty() -> None:
    order = EpochOrder(size=25, batch_size=8, seed=0)  # the last batch of an epoch has one sample
    shares = [list(ShareSampler(order, 0, 8, 2, rank, 2)) for rank in range(2)]
    assert [len(share) for share in shares] == [16, 16]
    assert all(keys for share in shares for keys in share)
    assert sum(key.filler for share in shares for keys in share for key in keys) == 2 * 3


def test_a_resumed_sampler_goes_on_where_the_whole_one_would() -> None:
    order = EpochOrder(size=29, batch_size=8, seed=5)
    whole = list(ShareSampler(order, 0, 12, 2, 0, 1))
    assert list(ShareSampler(order, 7, 12, 2, 0, 1)) == whole[14:]


def test_samples_before_a_step_counts_partial_batches() -> None:
    order = EpochOrder(size=29, batch_size=8, seed=5)
    counted = np.cumsum([0, *(len(order.batch(step)[1]) for step in range(11))])
    assert [order.samples_before(step) for step in range(12)] == counted.tolist()


def test_shares_differ_by_at_most_one() -> None:
    for length in range(20):
        sizes = [len(share) for share in split_evenly(range(length), 6)]
        assert sum(sizes) == length
        assert max(sizes) - min(sizes) <= 1


def test_a_filler_counts_nothing() -> None:
    collate = KeyedCollate(lambda samples: {"labels": torch.tensor(samples)})
    assert collate([(3, True)])["labels"].tolist() == [-100]
    assert collate([(3, False), (4, False)])["labels"].tolist() == [3, 4]
