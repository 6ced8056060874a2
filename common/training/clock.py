"""Time spent on training alone, and the memory it took."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from common.training import processes


class Clock:
    """Seconds of training without evaluation and checkpoints, and samples per second from them.

    Args:
        samples: samples that were trained on before this clock started.
        seconds: seconds of training of the same run before this clock started.
        rate: the run's samples per second before this clock started.
    """

    def __init__(self, samples: int = 0, seconds: float = 0.0, rate: float = 0.0) -> None:
        self._before, self._rate_before = seconds, rate
        self._start, self._paused = time.perf_counter(), 0.0
        self._end: float | None = None
        self._first: tuple[float, int] | None = None
        self._begin = self._last = (0.0, samples)

    def _now(self) -> float:
        return (self._end or time.perf_counter()) - self._start - self._paused

    def stop(self) -> None:
        """Let the clock stand still from now on."""
        wait_for_device()
        self._end = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training in the whole run."""
        return self._before + self._now()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens inside."""
        wait_for_device()
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin

    def lap(self, samples: int) -> float:
        """Samples per second since the last lap; `samples` is the number trained on so far."""
        before, self._last = self._last, (self._now(), samples)
        self._first = self._first or self._last
        return _rate(before, self._last)

    def rate(self) -> float:
        """Samples per second from the first lap on, which leaves out compilation and the start of workers."""
        if self._first is None:
            return self._rate_before
        return _rate(self._begin if self._first is self._last else self._first, self._last)


def _rate(begin: tuple[float, int], end: tuple[float, int]) -> float:
    return (end[1] - begin[1]) / max(end[0] - begin[0], 1e-9)


def wait_for_device() -> None:
    """Wait until the work queued on the accelerator is done; nothing on a CPU."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def reset_peak_memory() -> None:
    """Begin a new measurement of peak memory where the device has one."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """Most memory that any process took: allocated on its GPU, or resident where there is none; collective."""
    if torch.cuda.is_available():
        own = torch.cuda.max_memory_allocated()
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(processes.gather(own))
