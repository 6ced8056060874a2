"""Counts as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.adapters import METHODS
from common.config import AdapterConfig
from common.counting.count import Count
from common.counting.flops import Flops
from common.counting.memory import Memory, Setting
from common.counting.models import Architecture
from common.reporting.tables import Column, Row, Table, Value, format_value, render_text

_MB, _GB = 1e6, 1e9
_BYTES_PER_TRAINED = 16  # weight, gradient and AdamW's two moments, all in float32


def one_method(architecture: Architecture, counted: Count) -> str:
    """The layers and the sums of one method."""
    parts = [f"{architecture.name}: {architecture.title}, {_whole(counted.base)} parameters"]
    rank = f", r = {counted.r}" if counted.ranked else ""
    parts.append(f"{counted.method}{rank}")
    if counted.groups:
        parts += ["", render_text(_layers(counted))]
    lines = [("trained", _whole(counted.trainable), f"{counted.percent} % of the model")]
    if counted.paper is not None:
        paper = f"{counted.paper_percent} % as {counted.paper.table} counts, of {_whole(counted.paper.parameters)}"
        lines.append(("", "", paper))
    what = "the adapter's tensors, float32" if counted.groups else "the model, float32"
    lines.append(("saved", _bytes(counted.adapter_bytes), what))
    whole = _bytes(_BYTES_PER_TRAINED * counted.trainable)
    lines.append(("AdamW's state", _bytes(counted.optimizer_bytes), f"{whole} with trained weights and gradients"))
    if counted.flops is not None:
        lines += _flop_lines(counted.flops, METHODS[counted.method].routed)
    width = max(len(label) for label, _, _ in lines)
    room = max(len(value) for _, value, _ in lines)
    parts.append("")
    parts += [f"{label:<{width}}  {value:>{room}}  {remark}".rstrip() for label, value, remark in lines]
    if counted.flops is None:
        parts.append("FLOPs are counted for language models, vision towers and UNets only")
    return "\n".join(parts)


def memory_table(architecture: Architecture, adapter: AdapterConfig, setting: Setting, found: Memory) -> str:
    """What training takes on each GPU, in GB (10⁹ bytes)."""
    sharded = f", 1/{setting.gpus} of them" if setting.shard else ""
    stored = {"bf16": "bfloat16", "float32": "float32"}[setting.precision]
    if setting.quantize == "nf4":
        stored = f"NF4, the rest {stored}"
    twice = ", and DDP's copy" if setting.gpus > 1 else ""
    lines = [
        ("frozen weights", found.frozen, stored + sharded),
        ("gathered in passing", found.gathered, "what lies outside the blocks, and two blocks (estimate)"),
        ("unpacked in passing", found.unpacked, "the largest 4-bit weight"),
        ("frozen start of the adapters", found.start, "float32"),
        ("trained weights", found.trained, f"{_whole(found.trainable)} in float32"),
        ("their gradients", found.gradients, f"float32{twice}"),
        ("AdamW's moments", found.moments, "float32"),
        ("a step, at its peak", found.step, "counted: activations, logits and what is needed in passing"),
        ("  activations kept", found.kept, "in it: when the forward has reached the loss"),
    ]
    if found.supervised is not None:
        lines.append(("  logits kept", found.logits, f"in it: of {_whole(found.supervised)} tokens a sample"))
    lines = [line for line in lines if line[1] or line[0] in ("frozen weights", "trained weights")]
    lines.append(("together", found.total, "beside CUDA's own, about 1 GB, and gaps between allocations"))
    width = max(len(label) for label, _, _ in lines)
    amounts = [f"{number / _GB:,.2f}".replace(",", " ") for _, number, _ in lines]
    room = max(map(len, amounts))
    table = [
        f"{label:<{width}}  {amount:>{room}} GB  {remark}"
        for (label, _, remark), amount in zip(lines, amounts, strict=True)
    ]
    rank = f", r = {adapter.r}" if METHODS[adapter.method].ranked else ""
    sample = f" of {_whole(found.tokens)} tokens" if found.tokens is not None else ""
    how = ", gradient checkpointing" if setting.checkpointing else ""
    where = "one GPU" if setting.gpus == 1 else f"each of {setting.gpus} GPUs"
    samples = f"{setting.batch_per_gpu} sample{'s' if setting.batch_per_gpu > 1 else ''}"
    head = f"{adapter.method}{rank}; {samples}{sample} on {where}{how}"
    return "\n".join([f"{architecture.name}: {architecture.title}", head, "", *table])


def several_methods(architecture: Architecture, counts: Sequence[Count], left_out: Mapping[str, str]) -> str:
    """One row for each method, and under the table what could not be counted."""
    first = counts[0]
    flops = first.flops
    columns = [Column(name, better=None) for name in ("method", "trained", "% of model")]
    if first.paper is not None:
        columns.append(Column(f"% in {first.paper.table}", better=None))
    columns += [Column(name, digits=1, better=None) for name in ("saved MB", "AdamW MB")]
    if flops is not None:
        names = ("adapter, paper", "adapter, here", "once", "step", "step/full")
        columns += [Column(name, better=None) for name in names]
    rows = [Row(tuple(_cells(each))) for each in counts]
    caption = f"{architecture.title}: {_whole(first.base)} parameters; layers "
    caption += ", ".join(next((each.targets for each in counts if each.targets), ()))
    if flops is not None:
        _, prefix = _scale(flops)
        caption += (
            f". {prefix}FLOP per {flops.unit}; the model's forward takes {_amount(flops.base, flops)}. adapter: "
            "forward, as the paper counts (k of E experts) and as computed here; once: forward, for a pass of any "
            "size; step: forward and backward of the adapted model; step/full: over that of full fine-tuning."
        )
    text = render_text(Table(columns, rows, caption))
    alike: dict[str, list[str]] = {}
    for method, reason in left_out.items():
        alike.setdefault(reason, []).append(method)
    return "\n".join([text, *(f"left out: {', '.join(methods)}: {reason}" for reason, methods in alike.items())])


def _cells(counted: Count) -> list[Value]:
    cells: list[Value] = [counted.method, counted.trainable, float(counted.percent)]
    if counted.paper_percent is not None:
        cells.append(float(counted.paper_percent))
    cells += [counted.adapter_bytes / _MB, counted.optimizer_bytes / _MB]
    flops = counted.flops
    if flops is not None:
        scale, _ = _scale(flops)
        paper = None if flops.adapter_paper is None else flops.adapter_paper / scale
        cells += [paper, flops.adapter / scale, flops.adapter_once / scale, flops.training / scale]
        cells.append(flops.training / flops.full_training)
    return cells


def _layers(counted: Count) -> Table:
    columns = [Column("layer"), *(Column(name, better=None) for name in ("in", "out", "layers", "trained", "% of all"))]
    rows = [
        Row(
            (
                group.target,
                group.in_features,
                group.out_features,
                group.layers,
                group.trainable,
                100 * group.trainable / counted.trainable,
            )
        )
        for group in counted.groups
    ]
    return Table(columns, rows)


def _flop_lines(flops: Flops, routed: bool) -> list[tuple[str, str, str]]:
    sample = "" if flops.tokens is None else f", {_whole(flops.tokens)} tokens a sample"
    lines = [
        (f"FLOPs per {flops.unit}{sample}", "", ""),
        ("  model, forward", _amount(flops.base, flops), ""),
    ]
    if flops.adapter_paper is not None:
        share = f"{100 * flops.adapter_paper / flops.base:.2f} % more, as the paper counts"
        share += ": k of E experts" if routed else ""
        lines.append(("  adapter, forward", _amount(flops.adapter_paper, flops), share))
    share = f"{100 * flops.adapter / flops.base:.2f} % more, as computed here"
    lines.append(("  adapter, forward", _amount(flops.adapter, flops), share))
    if flops.adapter_once:
        lines.append(("  and once", _amount(flops.adapter_once, flops), "for a forward pass of any size"))
    ratio = f"forward and backward, {flops.training / flops.full_training:.2f} of full fine-tuning's"
    lines.append(("  training", _amount(flops.training, flops), f"{ratio} {_amount(flops.full_training, flops)}"))
    return lines


def _scale(flops: Flops) -> tuple[float, str]:
    return (1e6, "M") if flops.unit == "token" else (1e9, "G")


def _amount(number: float, flops: Flops) -> str:
    scale, prefix = _scale(flops)
    return f"{number / scale:,.2f} {prefix}FLOP".replace(",", " ")


def _bytes(number: int) -> str:
    return f"{number / _MB:,.1f} MB".replace(",", " ")


def _whole(number: int) -> str:
    return format_value(number, Column(""))
