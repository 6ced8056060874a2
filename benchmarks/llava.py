"""Speed and memory of LLaVA training, each figure beside what it is to be compared with, in one run.

    python benchmarks/llava.py --threads 1      # tiny models on a CPU, some minutes; --quick: smaller still
    python benchmarks/llava.py --json llava.json

1. Logits of the supervised tokens alone over logits of all, vocabulary 128 256: time and memory of a step.
2. Packed, length-grouped and modality-and-length-grouped batches over random ones: share of real tokens, real tokens/s.
3. A step of PEFT LoRA, MoSLoRA and GOAT over the frozen model (as `benchmarks/models.py` measures it).
4. One epoch of this suite (`common.training.fit`, length-grouped) over transformers' plain Trainer on the same model
   with PEFT LoRA and the same samples (random batches, all logits), and over TRL's SFTTrainer where that is installed.
5. On a GPU: LLaMA-3-8B's shape with random weights in bf16 and NF4 under LoRA, MoSLoRA, GOAT: tokens/s, MFU, memory,
   and from them the hours that 665 298 samples would take on four such GPUs if they scaled perfectly.

All weights are random, and the lengths are drawn from a made-up mixture (`benchmarks/llava_world.py`). Both sides are
warmed up and take turns; the table holds medians and ratios of medians. A GPU is used where there is one; hide it with
CUDA_VISIBLE_DEVICES= to measure the CPU beside it.
"""

# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python looks beside a script first, and there this file would hide the package of its name.
sys.path[:] = [str(HERE.parent), str(HERE), *(place for place in sys.path if place not in ("", str(HERE)))]

import argparse
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from llava_epoch import SMALL_VOCABULARY, epoch_rows
from llava_gpu import large_rows
from llava_world import DrawnSamples, Shape, adapted, batch_of, draw_lengths, make_base, tiny_shape
from measure import METHODS, Row, environment, medians, peak_flops, saved_bytes, show, step_rows
from models import llava_tasks
from torch import Tensor
from transformers.utils import logging as library_logging

from common.adapters import balance_loss
from common.training.order import EpochOrder, Grouping
from llava.data import PackedSamples
from llava.model import LlavaBase
from llava.objective import LlavaObjective

VOCABULARY = 128_256
PACKED_LENGTHS = (2048, 4096)  # rows where a picture takes 576 tokens; the first is the recipe's default
SECTIONS = ("logits", "batching", "adapters", "epoch", "large")
Task = Callable[[], object]


def backward_of(base: LlavaBase, loss: Callable[[], Tensor]) -> Task:
    """A step without its optimizer."""

    def step() -> None:
        with base.autocast():
            total = loss() + balance_loss(base.model)
        total.backward()
        base.model.zero_grad(set_to_none=True)

    return step


# -- 1: logits


def logits_rows(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """A step with the output head on supervised positions, and with logits of all positions as transformers has it."""
    shape = tiny_shape(args.hidden, 2, VOCABULARY, args.grid)
    base = adapted(make_base(shape, args.precision, device), "lora", 8)
    samples = DrawnSamples(draw_lengths(args.batch, shape), shape)
    batch = batch_of(samples, list(range(args.batch)), device)
    objective = LlavaObjective(base).train()
    ways: dict[str, Callable[[], Tensor]] = {
        "supervised": lambda: objective(**batch)["loss"],
        "all": lambda: base.model(**batch, use_cache=False).loss,
    }
    tasks = {name: backward_of(base, loss) for name, loss in ways.items()}
    took = medians(tasks, args.repeats, device, warm_up=args.warm_up, enough=args.seconds)
    share = float((batch["labels"] != -100).sum() / batch["labels"].numel())

    def row(what: str, values: dict[str, float], unit: str) -> list[Row]:
        one, other = values["supervised"], values["all"]
        return [
            Row(f"{what}, all logits", other, unit),
            Row(f"{what}, supervised logits ({share:.0%} of the positions)", one, unit, one / other, "all logits"),
        ]

    rows = row("step", {name: 1e3 * seconds for name, seconds in took.items()}, "ms")
    with base.autocast():
        weights = [*base.model.parameters(), *base.model.buffers(), *batch.values()]
        kept = {name: saved_bytes(loss, weights) / 2**20 for name, loss in ways.items()}
    rows += row("kept for the backward", kept, "MiB")
    if device.type == "cuda":
        rows += row("peak memory", {name: peak_of(task, device) for name, task in tasks.items()}, "MiB")
    return rows


def peak_of(task: Task, device: torch.device) -> float:
    """MiB that a task takes at most, the weights included."""
    torch.cuda.reset_peak_memory_stats(device)
    task()
    return torch.cuda.max_memory_allocated(device) / 2**20


# -- 2: batches


def batching_rows(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """Real tokens: their share in a whole epoch, and how many of them a second on a few batches spread over it."""
    shape = tiny_shape(args.hidden, 4, SMALL_VOCABULARY, args.grid)
    lengths = draw_lengths(args.samples, shape)
    samples = DrawnSamples(lengths, shape)
    classes = lengths.has_image.astype(np.int64)
    ways: dict[str, tuple[Any, np.ndarray, EpochOrder]] = {
        name: (samples, lengths.total, EpochOrder(len(samples), args.batch, 0, grouping))
        for name, grouping in (
            ("random", None),
            ("modality_length", Grouping(lengths.total, classes)),
            ("length", Grouping(lengths.total)),
        )
    }
    for capacity in PACKED_LENGTHS:
        length = max(capacity * shape.image_tokens // 576, int(lengths.total.max()))
        rows = PackedSamples(samples, lengths.total, length, seed=0)
        batch = max(1, round(args.batch * lengths.total.mean() / rows.lengths.mean()))  # as many real tokens
        ways[f"packed in {capacity}"] = (rows, rows.lengths, EpochOrder(len(rows), batch, 0))

    base = adapted(make_base(shape, args.precision, device), "lora", 8)
    objective = LlavaObjective(base).train()
    tasks: dict[str, Task] = {}
    tokens, shares = {}, {}
    for name, (dataset, sizes, epoch) in ways.items():
        parts = [epoch.batch(step)[1] for step in range(epoch.steps_per_epoch)]
        shares[name] = sizes.sum() / sum(len(part) * sizes[part].max() for part in parts)
        chosen = [parts[i] for i in np.linspace(0, len(parts) - 1, args.batches).astype(int)]
        tokens[name] = sum(int(sizes[part].sum()) for part in chosen)
        tasks[name] = steps_over(base, objective, [batch_of(dataset, part, device) for part in chosen])
    took = medians(tasks, args.repeats, device, warm_up=args.warm_up, enough=args.seconds)
    rates = {name: tokens[name] / seconds for name, seconds in took.items()}
    table = []
    for name in ways:
        words = ("share of real tokens", "real tokens/s")
        table.append(Row(f"{name}: {words[0]}", 100 * shares[name], "%", shares[name] / shares["random"], "random"))
        table.append(Row(f"{name}: {words[1]}", rates[name], "tokens/s", rates[name] / rates["random"], "random"))
    return table


def steps_over(base: LlavaBase, objective: LlavaObjective, batches: list[dict[str, Tensor]]) -> Task:
    """Forward and backward over several batches."""

    def steps() -> None:
        for each in batches:
            backward_of(base, lambda each=each: objective(**each)["loss"])()

    return steps


# -- all


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smallest sizes: shows that it runs, measures little")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="leave the rest out")
    parser.add_argument("--precision", choices=("float32", "bf16"), help="default: bf16 on a GPU, float32 without one")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--batch", type=int, help="samples of a batch; default: 16, and 4 for the logits on a CPU")
    parser.add_argument("--repeats", type=int, help="timed turns, at most")
    parser.add_argument("--large_batch", type=int, default=8, help="samples of a micro-batch of the large model")
    parser.add_argument("--peak", type=float, help="the GPU's dense FLOP/s, where it is not known here")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args(argv)


def sizes_of(args: argparse.Namespace, cuda: bool) -> argparse.Namespace:
    """The command line with the sizes that fit the machine."""
    own = vars(args)
    own |= {"precision": args.precision or ("bf16" if cuda else "float32"), "warm_up": 0 if args.quick else 1}
    if args.quick:
        sizes = {"grid": 2, "hidden": 32, "batch": 4, "samples": 120, "batches": 1, "epoch_samples": 12}
        own |= sizes | {"repeats": args.repeats or 1, "epochs": 1, "seconds": 0.0}
    elif cuda:
        sizes = {"grid": 24, "hidden": 512, "batch": args.batch or 16, "samples": 8000, "batches": 8}
        own |= sizes | {"epoch_samples": 1600, "repeats": args.repeats or 9, "epochs": 3, "seconds": 60.0}
    else:
        sizes = {"grid": 8, "hidden": 128, "batch": args.batch or 16, "samples": 8000, "batches": 8}
        own |= sizes | {"epoch_samples": 320, "repeats": args.repeats or 5, "epochs": 3, "seconds": 120.0}
    return argparse.Namespace(**own)


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, list[Row]]:
    """All sections that are asked for."""
    cuda, sections = device.type == "cuda", {}
    if "logits" in args.only:
        small = argparse.Namespace(**{**vars(args), "batch": args.batch if cuda else min(4, args.batch)})
        title = f"logits, vocabulary {VOCABULARY:,}, width {args.hidden}, batch {small.batch}"
        sections[title] = logits_rows(small, device)
    if "batching" in args.only:
        sections[f"batching, batch {args.batch}, {args.samples:,} drawn lengths"] = batching_rows(args, device)
    if "adapters" in args.only:
        own = argparse.Namespace(batch=args.batch if cuda else 2 - args.quick, width=4 if cuda else 1, r=8)
        own.precision = args.precision
        took = medians(llava_tasks(own, device), args.repeats, device, warm_up=args.warm_up, enough=args.seconds)
        sections["adapters, small LLaVA, r=8"] = step_rows(took, METHODS)
    if "epoch" in args.only:
        title = f"one epoch of {args.epoch_samples} samples, batch {args.batch}, vocabulary {SMALL_VOCABULARY}, LoRA"
        sections[title] = epoch_rows(args, device)
    if "large" in args.only and cuda:
        peak = args.peak or peak_flops(torch.cuda.get_device_name(device), "bf16")
        large: dict[str, Any] = {"shape": tiny_shape(64, 2, SMALL_VOCABULARY, 4), "r": 8} if args.quick else {}
        sections["LLaMA-3-8B's shape, r=64, gradient checkpointing"] = large_rows(
            METHODS, ("none", "nf4"), batch=args.large_batch, repeats=3, device=device, peak=peak, **large
        )
    return sections


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    cuda = torch.cuda.is_available()
    args = sizes_of(arguments(argv), cuda)
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        sections = measure(args, device)
    except torch.OutOfMemoryError as error:
        raise SystemExit("it does not fit into the GPU's memory; use a smaller --batch or --large_batch") from error
    shape: Shape = tiny_shape(args.hidden, 4, SMALL_VOCABULARY, args.grid)
    settings = f"random weights, synthetic lengths, {shape.image_tokens} tokens a picture, {args.precision}"
    line = f"{settings}, at most {args.repeats} repeats{', --quick' * args.quick}; {environment(device)}"
    show(line, sections, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
