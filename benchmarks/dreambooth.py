"""Speed and memory of DreamBooth training with SDXL, beside a step as the published script takes it, in one run.

    python benchmarks/dreambooth.py --threads 1     # a small SDXL on a CPU, some minutes; --quick: smaller still
    python benchmarks/dreambooth.py --json dreambooth.json

1. A whole optimizer step of this suite (cached latents and prompt embeddings, encoders released; LoRA, MoSLoRA, GOAT)
   over a step as diffusers' `train_dreambooth_lora_sdxl.py` takes it, written in our words: the VAE encodes in every
   step, the text encoders once (one prompt for all pictures) or in every step (a caption for each picture). Beside
   them the frozen UNet's forward and forward+backward, which nothing can avoid.
2. Memory of the same steps: on a CPU of a process of its own for each, on a GPU as PyTorch counts it.
3. On a GPU: SDXL's own shape at 1024 px, batch 4, bf16: seconds for 500 steps under LoRA, MoSLoRA and GOAT, with SDPA
   and xformers, compiled and not; the paper takes 16 minutes on one A100-80G ([M] 4.3).

All weights are random, and the pictures are noise. Both sides are warmed up and take turns; the table holds medians and
ratios of medians. A GPU is used where there is one; hide it with CUDA_VISIBLE_DEVICES= to measure the CPU beside it.
"""

# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python looks beside a script first, and there this file would hide the package of its name.
sys.path[:] = [str(HERE.parent), str(HERE), *(place for place in sys.path if place not in ("", str(HERE)))]

import argparse
import ctypes
import gc
import json
import subprocess
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from diffusers.utils import logging as library_logging
from dreambooth_world import (
    SDXL,
    SMALL,
    TOY,
    Shape,
    Task,
    draw_pictures,
    frozen_steps,
    make_base,
    our_step,
    prepare_cache,
    published_step,
    shares,
)
from measure import METHODS, Row, environment, machine_options, medians, show

from common.config import Method, Precision
from common.errors import UserError
from dreambooth.config import Attention

PICTURES = 5
STEPS, PAPER_SECONDS = 500, 16 * 60
PUBLISHED = {
    "published": "published way, one prompt: VAE every step",
    "published_texts": "published way, captions: VAE and text encoders every step",
}
TARGET = "≤ 0.6"


# -- 1: a step


def tasks_of(
    names: Sequence[str], shape: Shape, precision: Precision, batch: int, device: torch.device
) -> dict[str, Task]:
    """The steps of some names, each on a model of its own.

    Args:
        names: `forward`, `frozen`, those of `PUBLISHED`, and methods.
        shape: of the models.
        precision: of the frozen weights.
        batch: pictures of a step.
        device: where they work.
    """
    found: dict[str, Task] = {}
    pictures = draw_pictures(shape, PICTURES, device)
    for name in names:
        base = make_base(shape, precision, device)
        if name in PUBLISHED:
            texts = name == "published_texts"
            found[name] = published_step(base, pictures, r=rank("lora"), batch=batch, texts_every_step=texts)
            continue
        samples = prepare_cache(base, pictures)
        if name in ("forward", "frozen"):
            found[name] = frozen_steps(base, samples, batch)[name]
        else:
            found[name] = our_step(base, samples, name, r=rank(name), batch=batch)  # type: ignore[arg-type]
    return found


def rank(method: str) -> int:
    """[M]'s rank for SDXL; GOAT's experts need a multiple of their number."""
    return 8 if method == "goat" else 4


def step_rows(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """Time of a step."""
    names = ("forward", "frozen", *PUBLISHED, *METHODS)
    tasks = tasks_of(names, args.shape, args.precision, args.batch, device)
    took = medians(tasks, args.repeats, device, warm_up=args.warm_up, enough=args.seconds)

    def row(what: str, name: str, over: str = "", words: str = "", target: str = "") -> Row:
        return Row(what, 1e3 * took[name], "ms", took[name] / took[over] if over else None, words, target)

    rows = [
        row("frozen UNet, forward", "forward"),
        row("frozen UNet, forward+backward", "frozen", "forward", "forward"),
    ]
    rows += [row(words, name) for name, words in PUBLISHED.items()]
    for method in METHODS:
        words = f"ours, {method}, r={rank(method)}"
        rows.append(row(words, method, "published", "published way, one prompt", TARGET))
        rows.append(row(words, method, "published_texts", "published way, captions", TARGET))
        rows.append(row(words, method, "frozen", "frozen forward+backward"))
    best = took["frozen"] / took["published"]
    rows.append(Row("the least that is possible", 1e3 * took["frozen"], "ms", best, "published way, one prompt"))
    return rows


# -- 2: memory


def memory_rows(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """Peak memory of a step, everything included that lives then."""
    peak = _cuda_peak if device.type == "cuda" else _process_peak
    methods = METHODS[:1] if args.quick else METHODS
    found = {name: peak(name, args, device) for name in ("published", *methods)}
    rows = [Row(PUBLISHED["published"], found["published"] / 2**20, "MiB")]
    for method in methods:
        ratio = found[method] / found["published"]
        rows.append(Row(f"ours, {method}", found[method] / 2**20, "MiB", ratio, "published way, one prompt"))
    return rows


def _cuda_peak(name: str, args: argparse.Namespace, device: torch.device) -> float:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    task = tasks_of([name], args.shape, args.precision, args.batch, device)[name]
    task()  # the optimizer's state exists from here on
    torch.cuda.reset_peak_memory_stats(device)
    task()
    return torch.cuda.max_memory_allocated(device) - before


def _process_peak(name: str, args: argparse.Namespace, device: torch.device) -> float:
    options = ["--child", name, "--batch", str(args.batch), "--precision", args.precision, *["--quick"] * args.quick]
    command = [sys.executable, __file__, *options, "--threads", str(torch.get_num_threads())]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(answer.splitlines()[-1])["peak"])


def child(args: argparse.Namespace) -> int:
    """Print the most memory that a step took, over what the process took before it had a model; Linux only."""
    before = _status("VmRSS")
    task = tasks_of([args.child], args.shape, args.precision, args.batch, torch.device("cpu"))[args.child]
    task()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that the preparation does not count
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    task()
    print(json.dumps({"peak": _status("VmHWM") - before}))
    return 0


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


# -- 3: SDXL's own shape


def large_rows(
    methods: Sequence[Method],
    *,
    shape: Shape,
    precision: Precision,
    batch: int,
    repeats: int,
    device: torch.device,
    attentions: Sequence[Attention] = ("sdpa", "xformers"),
    compiled: Sequence[bool] = (False, True),
) -> list[Row]:
    """Seconds that 500 steps take, one after another of: the published way, and ours in every combination."""
    rows, published = (
        [],
        _measured(lambda: tasks_of(["published"], shape, precision, batch, device)["published"], repeats, device),
    )
    if published is not None:
        rows += _large("published way, one prompt, sdpa", *published, None)
    for attention in attentions:
        for method in methods:
            for whether in compiled:
                label = f"ours, {method}, {attention}{', compiled' * whether}"

                def make(method: Method = method, attention: Attention = attention, whether: bool = whether) -> Task:
                    base = make_base(shape, precision, device, attention)
                    samples = prepare_cache(base, draw_pictures(shape, PICTURES, device))
                    return our_step(base, samples, method, r=rank(method), batch=batch, compiled=whether)

                try:
                    found = _measured(make, repeats, device)
                except UserError as error:
                    print(f"{label}: left out: {error}", file=sys.stderr)
                    continue
                if found is not None:
                    rows += _large(label, *found, None if published is None else published[0])
    return rows


def _measured(make: Callable[[], Task], repeats: int, device: torch.device) -> tuple[float, float] | None:
    """Seconds of a step and its peak memory in bytes; None where it does not fit."""
    gc.collect()
    if device.type != "cuda":
        return medians({"it": make()}, repeats, device, warm_up=1)["it"], 0.0
    torch.cuda.empty_cache()
    try:
        task = make()
        for _ in range(3):  # compilation, and the optimizer's state
            task()
        torch.cuda.reset_peak_memory_stats(device)
        seconds = medians({"it": task}, repeats, device)["it"]
    except torch.OutOfMemoryError:
        print("does not fit into the GPU's memory and is left out", file=sys.stderr)
        return None
    return seconds, float(torch.cuda.max_memory_allocated(device))


def _large(label: str, seconds: float, peak: float, published: float | None) -> list[Row]:
    rows = [Row(label, STEPS * seconds, "s/500 steps", STEPS * seconds / PAPER_SECONDS, "16 min on an A100 [M]")]
    if published is not None:
        rows.append(Row(label, STEPS * seconds, "s/500 steps", seconds / published, "published way", TARGET))
    return [*rows, Row(f"{label}: peak memory", peak / 2**30, "GiB")] if peak else rows


# -- all


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, with the sizes that fit the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smallest sizes: shows that it runs, measures little")
    parser.add_argument("--only", nargs="+", choices=("step", "memory", "large"), help="leave the rest out")
    parser.add_argument("--precision", choices=("float32", "bf16"), help="default: bf16 on a GPU, float32 without one")
    parser.add_argument("--batch", type=int, help="pictures of a step of the small model; default: 1, on a GPU 4")
    parser.add_argument("--repeats", type=int, help="timed turns, at most")
    parser.add_argument("--large_batch", type=int, default=4, help="pictures of a step of SDXL's own shape")
    parser.add_argument("--side", type=int, default=1024, help="of a picture for SDXL's own shape; default: 1024")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    machine_options(parser)
    args = parser.parse_args(argv)
    cuda = torch.device(args.device).type == "cuda"
    args.precision = args.precision or ("bf16" if cuda else "float32")
    args.only = args.only or ["step", "memory", "large"]
    args.shape = TOY if args.quick else SMALL
    args.batch = args.batch or (4 if cuda else 1)
    args.repeats = args.repeats or (1 if args.quick else 15 if cuda else 7)
    args.warm_up, args.seconds = (0, 0.0) if args.quick else (1, 240.0)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = arguments(argv)
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    library_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if args.child:
        return child(args)
    sections: dict[str, list[Row]] = {}
    parts = shares(args.shape)
    title = f"small SDXL at {args.shape.side} px, batch {args.batch}: VAE {parts['vae']:.2f}, text encoders "
    title += f"{parts['texts']:.2f} of the UNet's forward FLOPs (SDXL at 1024 px: 0.72, 0.02)"
    if "step" in args.only:
        sections[f"step, {title}"] = step_rows(args, device)
    if "memory" in args.only:
        sections["peak memory of such a step"] = memory_rows(args, device)
    if "large" in args.only and device.type == "cuda":
        shape = TOY if args.quick else replace(SDXL, side=args.side)
        sections[f"SDXL's shape, {shape.side} px, batch {args.large_batch}, {args.precision}"] = large_rows(
            METHODS,
            shape=shape,
            precision=args.precision,
            batch=args.large_batch,
            repeats=args.repeats,
            device=device,
        )
    settings = f"random weights, drawn pictures, {args.precision}, at most {args.repeats} repeats"
    show(f"{settings}{', --quick' * args.quick}; {environment(device)}", sections, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
