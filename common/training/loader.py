"""The micro-batches of one process, loaded by worker processes ahead of the model."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from common.cores import usable_cores
from common.errors import UserError
from common.training.order import KeyedCollate, KeyedSamples, SampleDataset, ShareSampler

T = TypeVar("T")
_PREFETCH = 4
_MOST_WORKERS = 8


def default_workers() -> int:
    """One less than the cores this process may use, shared among the processes of the machine, at most 8."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(_MOST_WORKERS, usable_cores() // processes - 1))


def workers_for(num_workers: int | None) -> int:
    """The number that a recipe gives, or `default_workers()` where it gives none."""
    return default_workers() if num_workers is None else num_workers


def outlive_signals(_: int) -> None:
    """For a worker: leave SIGTERM and Ctrl-C to the main process, with which it ends in any case.

    A job manager or a terminal sends them to the whole process group; a dead worker would end the training before
    its checkpoint, and one that is interrupted prints a traceback.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    # multiprocessing's own exit handler sends SIGTERM, which they ignore, and would then wait for them for ever: where
    # an error nobody foresaw still holds their loader. torch would report the dead ones behind that error
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def batches_of(loader: Iterable[T]) -> Iterator[T]:
    """The batches of a loader; a `UserError` of a worker keeps its own words, not torch's with a traceback in them."""
    try:
        yield from loader
        return
    except UserError as error:
        message = str(error).rpartition(f"\n{UserError.__module__}.{UserError.__qualname__}: ")[2].rstrip()
    # Out of the handler: the first error's traceback would keep the loader, and so its workers, alive.
    raise UserError(message)


def items_of(dataset: Dataset[T], num_workers: int) -> Iterator[T]:
    """The items of a data set in their order, made by worker processes ahead of who takes them, and as they are.

    Args:
        dataset: indexed by 0..N-1, with a length.
        num_workers: processes at most; 0: this one.
    """
    size = len(dataset)  # type: ignore[arg-type]
    loader: DataLoader[T] = DataLoader(
        dataset,
        batch_size=None,
        num_workers=min(num_workers, size),
        collate_fn=_same,  # torch would make tensors of arrays
        worker_init_fn=outlive_signals,
    )
    return batches_of(loader)


def _same(item: T) -> T:
    return item


class TrainBatches:
    """Iterable over the micro-batches that are left to train; one pass, over all epochs.

    The loader has a random generator of its own: starting it draws nothing from the global one, which would
    make a resumed run differ from one that was not interrupted.

    Args:
        dataset: the samples, indexed by (epoch, index).
        collate: turns samples into a dict of tensors with `labels`.
        sampler: the keys of the micro-batches.
        num_workers: worker processes; 0 loads in this one.
        seed: seeds the workers; samples must not depend on it, they are a function of their key.
        pin_memory: put batches in page-locked memory, for copies to a GPU that overlap with its work.
    """

    def __init__(
        self,
        dataset: SampleDataset,
        collate: Callable[[list[Any]], Mapping[str, Any]],
        sampler: ShareSampler,
        *,
        num_workers: int,
        seed: int,
        pin_memory: bool,
    ) -> None:
        self.dataset = KeyedSamples(dataset)
        self._length = len(sampler)
        self._loader = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=KeyedCollate(collate),
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=_PREFETCH if num_workers else None,
            generator=torch.Generator().manual_seed(seed),
            worker_init_fn=outlive_signals,
        )
        self._running: Iterator[dict[str, Any]] | None = None

    def __len__(self) -> int:
        """Number of micro-batches of this process."""
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Start the workers and yield batches."""
        self.close()
        self._running = self._batches()
        return self._running

    def _batches(self) -> Iterator[dict[str, Any]]:
        yield from batches_of(self._loader)

    def close(self) -> None:
        """End the workers at once, also where a traceback still holds the iterator."""
        if self._running is not None:
            self._running.close()  # type: ignore[attr-defined]
            self._running = None
