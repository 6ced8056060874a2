"""Runs side by side: one process with one thread each.

For matrices as small as the demo's, two threads in one run wait for each other more than they compute (measured on
two busy cores: ten times slower than one thread), while two runs with a thread each use both cores. One thread also
makes a run's numbers the same however many cores there are.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from common.cores import usable_cores

if TYPE_CHECKING:  # a worker imports the rest in `_start`, after it has quietened it
    from vit_classify.sweep import Cell
    from vit_classify.sweep_table import Outcome

MOST_JOBS = 4  # a process takes about a gigabyte, nearly all of it libraries


@dataclass(frozen=True)
class Done:
    """A run that has ended.

    Args:
        number: which of the cells.
        outcome: what became of it.
        seconds: wall time, loading and measuring included.
    """

    number: int
    outcome: Outcome
    seconds: float


def default_jobs(runs: int) -> int:
    """How many runs at a time: one per core, at most `MOST_JOBS`."""
    return max(1, min(MOST_JOBS, runs, usable_cores()))


def run_cells(cells: Sequence[Cell], logs: Path, jobs: int) -> Iterator[Done]:
    """Run every cell and yield each as it ends; one that fails does not stop the others.

    Args:
        cells: the runs; the data cache that they share must have been built.
        logs: folder for what each run prints.
        jobs: how many at a time.
    """
    from vit_classify.sweep_table import Outcome

    logs.mkdir(parents=True, exist_ok=True)
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start)
    previous = _terminated_by_exception()
    try:
        with _interrupts_ignored():  # which the workers inherit: Ctrl-C goes to all processes of a terminal
            futures = {pool.submit(_run, cell, logs / log_name(cell)): number for number, cell in enumerate(cells)}
        for future in as_completed(futures):
            number = futures[future]
            try:
                outcome, seconds = future.result()
            except BrokenProcessPool:
                cell = cells[number]
                message = "its process was killed, perhaps for memory; the same command with --jobs 1 goes on"
                outcome, seconds = Outcome(cell.dataset, cell.method, cell.seed, str(cell.path), message=message), 0.0
            yield Done(number, outcome, seconds)
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.terminate()  # each saves a checkpoint first
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def log_name(cell: Cell) -> str:
    """The file in which a run's own messages are kept."""
    return f"{cell.method}-seed{cell.seed}.log"


def _terminated_by_exception() -> Any:
    """Let SIGTERM raise `SystemExit` here, so that the workers are told; what it did before, None where that stays."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, leave)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _start() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that 4-bit models could use
    import vit_classify.sweep  # noqa: F401


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # returns when the demo is gone, even if it was killed; its workers must not train on
    os._exit(1)


def _run(cell: Cell, log: Path) -> tuple[Outcome, float]:
    from common.training.fit import SIGTERM_STATUS
    from vit_classify.sweep import run_cell

    began = time.monotonic()
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        try:
            outcome = run_cell(cell)
        except SystemExit:
            # SIGTERM, and the checkpoint is written. The pool would take this for a result and the worker would wait
            # for more work, while whoever sent the signal waits for its end.
            os._exit(SIGTERM_STATUS)
    return outcome, time.monotonic() - began
