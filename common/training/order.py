"""The order of the samples: a function of (seed, epoch) alone, however many processes share the work.

A *global batch* is what one optimizer step sees. It is split into `processes x accumulation` shares whose
sizes differ by at most one; share `r * accumulation + a` is micro-batch `a` of process `r`. So 8x1, 4x2
accumulated and two processes of 4 see the same global batches, and a resumed run starts at any step by
arithmetic, without loading a sample.

A share of the last, partial batch of an epoch can be empty. Its micro-batch is then one *filler*: a sample of
the batch whose labels are all -100, so that every process runs every collective and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

IGNORED_LABEL = -100
FILLER = "filler"  # key of a batch that only fills an empty share

SampleKey = tuple[int, int]
"""(epoch, index): all that a sample, its augmentation included, may depend on beside the run's seed."""


class SampleDataset(Protocol):
    """A set of training samples; `dataset[(epoch, index)]` gives the same sample in every process and run."""

    def __getitem__(self, key: SampleKey) -> Any:
        """The sample `index` as epoch `epoch` sees it."""

    def __len__(self) -> int:
        """Number of samples."""


@dataclass(frozen=True, eq=False)
class Grouping:
    """Samples that are alike share a batch, so that little of it is padding.

    Within each run of `MEGABATCH` batches of the epoch's permutation the samples are sorted by class and length,
    and the batches then shuffled; the first batch of the run's first epoch is the one with the longest sample, so
    that a lack of memory shows at once.

    Args:
        lengths: (size,) length of each sample.
        classes: (size,) integers; samples of different classes meet in a batch only where one class ends and the
            next begins. None: one class.
    """

    lengths: np.ndarray
    classes: np.ndarray | None = None


# batches that are sorted together: more waste less, but make an epoch less random
MEGABATCH = 50


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """A new permutation of the samples in every epoch; the last batch of an epoch may be smaller.

    Args:
        size: number of samples.
        batch_size: samples in one global batch.
        seed: seed of all permutations.
        grouping: which samples go together; None: as chance has it.
    """

    size: int
    batch_size: int
    seed: int
    grouping: Grouping | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches in an epoch, ceil(size / batch_size)."""
        return -(-self.size // self.batch_size)

    def batch(self, step: int) -> tuple[int, list[int]]:
        """Epoch and sample indices of global batch `step`, counted from 0 over the whole run."""
        epoch, position = divmod(step, self.steps_per_epoch)
        first = position * self.batch_size
        return epoch, _permutation(self, epoch)[first : first + self.batch_size].tolist()

    def samples_before(self, step: int) -> int:
        """Number of samples in the first `step` global batches."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return epoch * self.size + position * self.batch_size


@lru_cache(maxsize=2)
def _permutation(order: EpochOrder, epoch: int) -> np.ndarray:
    rng = np.random.default_rng([order.seed, epoch])
    permutation = rng.permutation(order.size)
    if order.grouping is None:
        return permutation
    return _grouped(permutation, order.grouping, order.batch_size, rng, longest_first=epoch == 0)


def _grouped(
    permutation: np.ndarray, grouping: Grouping, batch_size: int, rng: np.random.Generator, longest_first: bool
) -> np.ndarray:
    classes = np.zeros_like(grouping.lengths) if grouping.classes is None else grouping.classes
    whole = len(permutation) // batch_size * batch_size  # the partial batch stays the last one
    batches: list[np.ndarray] = []
    for first in range(0, whole, MEGABATCH * batch_size):
        part = permutation[first : min(first + MEGABATCH * batch_size, whole)]
        part = part[np.lexsort((-grouping.lengths[part], classes[part]))]
        batches.extend(part.reshape(-1, batch_size))
    if not batches:
        return permutation
    shuffled = np.stack(batches)[rng.permutation(len(batches))]
    if longest_first:
        place = int(grouping.lengths[shuffled].max(axis=1).argmax())
        shuffled[[0, place]] = shuffled[[place, 0]]
    return np.concatenate([shuffled.reshape(-1), permutation[whole:]])


def split_evenly(indices: Sequence[int], shares: int) -> list[list[int]]:
    """Consecutive parts of `indices` whose lengths differ by at most one, the longer ones first."""
    least, more = divmod(len(indices), shares)
    ends = [share * least + min(share, more) for share in range(shares + 1)]
    return [list(indices[first:last]) for first, last in pairwise(ends)]


class _Key(NamedTuple):
    epoch: int
    sample: int
    filler: bool = False


class ShareSampler(Sampler[list[_Key]]):
    """The micro-batches of one process, for the steps `first_step` up to `last_step` (exclusive).

    Args:
        order: the global batches.
        first_step: step at which to begin, 0 unless resumed.
        last_step: step before which to end.
        accumulation: micro-batches of a process in one step.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(
        self, order: EpochOrder, first_step: int, last_step: int, accumulation: int, rank: int, world_size: int
    ) -> None:
        self._order, self._steps = order, range(first_step, last_step)
        self._shares = world_size * accumulation
        self._own = slice(rank * accumulation, (rank + 1) * accumulation)
        self._accumulation = accumulation

    def __len__(self) -> int:
        """Number of micro-batches."""
        return len(self._steps) * self._accumulation

    def __iter__(self) -> Iterator[list[_Key]]:
        """Yield the keys of one micro-batch after the other."""
        for step in self._steps:
            epoch, indices = self._order.batch(step)
            for share in split_evenly(indices, self._shares)[self._own]:
                yield [_Key(epoch, i) for i in share] or [_Key(epoch, indices[0], filler=True)]


class KeyedSamples(Dataset[tuple[Any, bool]]):
    """A `SampleDataset` as the loader of `ShareSampler`'s keys needs it: gives (sample, is it a filler)."""

    def __init__(self, samples: SampleDataset) -> None:
        self._samples = samples

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._samples)

    def __getitem__(self, key: _Key) -> tuple[Any, bool]:
        """The sample of a key, and whether it only fills an empty share."""
        return self._samples[(key.epoch, key.sample)], key.filler


@dataclass(frozen=True)
class KeyedCollate:
    """The pipeline's `collate`, after which a filler is marked and its labels are made to count nothing."""

    collate: Callable[[list[Any]], Mapping[str, Any]]

    def __call__(self, samples: list[tuple[Any, bool]]) -> dict[str, Any]:
        """A batch, a dict of tensors with `labels`."""
        batch = dict(self.collate([sample for sample, _ in samples]))
        if any(filler for _, filler in samples):
            labels: Tensor = batch["labels"]
            batch["labels"] = torch.full_like(labels, IGNORED_LABEL)
            batch[FILLER] = torch.tensor(True)
        return batch
