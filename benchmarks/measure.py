"""What the benchmarks share: taking turns, rows of a table, the environment in one line."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common.config import Method, Precision

METHODS: tuple[Method, ...] = ("lora", "moslora", "goat")  # that every pipeline is measured with
# Dense bfloat16 FLOP/s by the makers' data sheets; the first that is in the GPU's name, as whole words.
PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "L40S": 362e12,
    "A10": 125e12,
}


@dataclass(frozen=True)
class Row:
    """One line of the table: a median, and its ratio to the median of something else."""

    what: str
    value: float
    unit: str
    ratio: float | None = None
    over: str = ""
    target: str = ""


def machine_options(parser: argparse.ArgumentParser, threads: str = "torch's threads") -> None:
    """Where a benchmark runs and what it writes: `--device`, `--threads` (with this help) and `--json`."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help=threads)
    parser.add_argument("--json", type=Path, help="write the figures here too")


def device_of(args: argparse.Namespace) -> torch.device:
    """The device that was asked for, with torch's threads set."""
    if args.threads:
        torch.set_num_threads(args.threads)
    return torch.device(args.device)


def peak_flops(gpu: str, precision: Precision) -> float | None:
    """The peak of a GPU in bfloat16 by its name; None where it is not known."""
    known = (peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", gpu))
    return next(known, None) if precision == "bf16" else None


def medians(
    tasks: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    *,
    warm_up: int = 2,
    enough: float = math.inf,
) -> dict[str, float]:
    """Median seconds of each task; they take turns, so that a busy machine slows all of them alike.

    On a GPU and with several threads it is the time on the clock; with one thread it is the processor's time, which
    other programs disturb less.

    Args:
        tasks: name -> what is timed.
        repeats: timed turns.
        device: where the tasks work.
        warm_up: turns before them that do not count.
        enough: seconds after which no new turn begins once each task has three timed ones.
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
    begin = time.perf_counter()
    for turn in tqdm(range(-warm_up, repeats), "timing", leave=False):
        if turn >= 3 and time.perf_counter() - begin > enough:
            break
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            took = seconds(tasks[name])
            if turn >= 0:
                found[name].append(took)
    return {name: statistics.median(values) for name, values in found.items()}


def saved_bytes(forward: Callable[[], object], weights: Iterable[Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward: unique storages, weights left out.

    Args:
        forward: runs the forward and returns its output.
        weights: tensors that exist anyway; what shares memory with one of them is not counted.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in weights}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = forward()  # until all are counted, so that no address is used twice
    del alive
    return sum(found.values())


def environment(device: torch.device) -> str:
    """Machine, threads and versions in one line."""
    names = ("torch", "torchvision", "transformers", "diffusers", "open_clip_torch", "peft", "pillow")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return (
        f"{where}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, "
        f"python {platform.python_version()}, {versions}"
    )


def step_rows(took: Mapping[str, float], methods: Sequence[str]) -> list[Row]:
    """A model's steps beside the frozen model and PEFT's LoRA.

    Args:
        took: seconds of `forward` and `frozen` (forward and backward) of the frozen model, and of each method's step.
        methods: `lora` first.
    """

    def row(what: str, name: str, over: str, target: str, words: str) -> Row:
        return Row(what, took[name] * 1e3, "ms", took[name] / took[over], words, target)

    rows = [Row("frozen, forward", took["forward"] * 1e3, "ms")]
    rows.append(row("frozen, forward+backward", "frozen", "forward", "", "forward"))
    for method in methods:
        rows.append(row(f"{method} step", method, "frozen", "", "frozen forward+backward"))
    for method in methods:
        rows.append(row(f"{method} step", method, "forward", "≤ 2.4", "frozen forward"))
    return rows + [row(f"{method} step", method, "lora", "", "PEFT LoRA step") for method in methods[1:]]


def show(line: str, sections: Mapping[str, Sequence[Row]], file: Path | None) -> None:
    """Print the settings and the table, and write them to a JSON file where one is wanted.

    Args:
        line: settings and environment.
        sections: heading -> rows.
        file: the JSON file; None: none.
    """
    print(f"{line}\n\n{as_markdown(sections)}")
    if file is not None:
        rows = {name: [asdict(row) for row in part] for name, part in sections.items()}
        content = {"environment": line, "sections": rows}
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def as_markdown(sections: Mapping[str, Sequence[Row]]) -> str:
    """One table over all sections."""
    lines = ["| what | median | ratio | over | target |", "|---|---:|---:|---|---|"]
    for section, rows in sections.items():
        lines.append(f"| **{section}** | | | | |")
        for row in rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            lines.append(f"| {row.what} | {row.value:,.1f} {row.unit} | {ratio} | {row.over} | {row.target} |")
    return "\n".join(lines)
