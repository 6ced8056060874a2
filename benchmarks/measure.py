"""What the benchmarks share: taking turns, rows of a table, the environment in one line."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Row:
    """One line of the table: a median, and its ratio to the median of something else."""

    what: str
    value: float
    unit: str
    ratio: float | None = None
    over: str = ""
    target: str = ""


def medians(tasks: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each task; they take turns, so that a busy machine slows all of them alike.

    On a GPU and with several threads it is the time on the clock; with one thread it is the processor's time, which
    other programs disturb less.
    """
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def seconds(task: Callable[[], object]) -> float:
        began = clock()
        task()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - began

    found: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    for turn in tqdm(range(-2, repeats), "timing", leave=False):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            took = seconds(tasks[name])
            if turn >= 0:  # the first two turns warm up
                found[name].append(took)
    return {name: statistics.median(values) for name, values in found.items()}


def environment(device: torch.device) -> str:
    """Machine, threads and versions in one line."""
    names = ("torch", "torchvision", "open_clip_torch", "peft", "pillow")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return (
        f"{where}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, "
        f"python {platform.python_version()}, {versions}"
    )


def as_markdown(sections: Mapping[str, Sequence[Row]]) -> str:
    """One table over all sections."""
    lines = ["| what | median | ratio | over | target |", "|---|---:|---:|---|---|"]
    for section, rows in sections.items():
        lines.append(f"| **{section}** | | | | |")
        for row in rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            lines.append(f"| {row.what} | {row.value:,.1f} {row.unit} | {ratio} | {row.over} | {row.target} |")
    return "\n".join(lines)
