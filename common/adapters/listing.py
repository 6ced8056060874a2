"""`mosgoat methods`: the table of methods, or one of them with its options.

Counts are of CLIP ViT-B/32 with q, k, v, out and both layers of the MLP adapted, read off a model without memory.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from common.adapters.methods import attach
from common.adapters.table import METHODS, Method
from common.config import OPTIONS, AdapterConfig
from common.config_checks import adapter_problems
from common.counting.flops import matched
from common.counting.models import find_model, linear_layers
from common.errors import UserError
from common.words import did_you_mean

PROG = "mosgoat methods"
MODEL = "clip-vit-b-32"
WIDTH = 100
_WHAT = 43  # columns of the description
_YES = {True: "yes", False: "-"}


@dataclass(frozen=True)
class Listed:
    """One row of the table.

    Args:
        name: as in recipes.
        paper: where it comes from.
        equation: the update in words.
        trainable: trained parameters of the tower at this rank; None where the rank does not fit or only a head is
            trained.
        mergeable: whether it can be merged into the base weights.
        routed: whether it sends tokens to experts.
        exportable: whether it can be written as a LoRA that other tools open.
        by: `PEFT`, `mosgoat`, or empty for what is no adapter.
    """

    name: str
    paper: str
    equation: str
    trainable: int | None
    mergeable: bool
    routed: bool
    exportable: bool
    by: str


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="explain this method and its options")
    parser.add_argument("--r", type=int, default=8, help="total rank of every adapted layer; default: 8")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    if options.r < 1:
        raise UserError(f"--r={options.r} must be at least 1")
    if options.name is not None and options.name not in METHODS:
        raise UserError(f"there is no method {options.name!r}; {did_you_mean(options.name, METHODS)}")
    names = list(METHODS) if options.name is None else [options.name]
    rows = [listed(METHODS[name], options.r) for name in names]
    if options.json:
        content = [{**asdict(row), "options": options_of(row.name), "note": METHODS[row.name].note} for row in rows]
        print(json.dumps({"model": MODEL, "r": options.r, "methods": content}, indent=2, ensure_ascii=False))
    elif options.name is None:
        print(table(rows, options.r))
    else:
        print(explanation(rows[0], options.r))
    return 0


def listed(method: Method, r: int) -> Listed:
    """A method's row; counts it at rank `r`."""
    by = "" if method.build is None else "mosgoat" if method.ours else "PEFT"
    return Listed(
        method.name,
        method.paper,
        method.equation,
        trainable(method, r),
        method.mergeable,
        method.routed,
        method.exportable,
        by,
    )


def trainable(method: Method, r: int) -> int | None:
    """Trained parameters of the tower; None where `r` does not go with the method, or it trains only a head."""
    adapter = AdapterConfig(method=method.name, r=r)  # type: ignore[arg-type]
    if method.name == "linear_probe" or adapter_problems(adapter):
        return None
    whole, shapes = tower()
    if method.build is None:
        return whole
    total = 0
    for shape, layers in shapes.items():
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PEFT's calls into transformers
            model = attach(nn.ModuleDict({"layer": nn.Linear(*shape)}), adapter, ["layer"])
        total += layers * sum(p.numel() for p in model.parameters() if p.requires_grad)
    return total


@functools.cache
def tower() -> tuple[int, Counter[tuple[int, int]]]:
    """How many parameters the model has, and (in, out) of its adapted layers -> how many there are."""
    architecture = find_model(MODEL)
    model = architecture.make()
    names = [name for name in linear_layers(model) if matched(name, architecture.targets)]
    shapes = Counter((int(layer.in_features), int(layer.out_features)) for layer in map(model.get_submodule, names))  # type: ignore[arg-type]
    return sum(parameter.numel() for parameter in model.parameters()), shapes


def options_of(name: str) -> dict[str, str]:
    """The options that have an effect on a method, each with what it is and what it is where it is not given."""
    said = re.sub(r"\n {12,}", " ", AdapterConfig.__doc__ or "")
    texts = dict(re.findall(r"^ {8}(\w+): (.*)$", said, flags=re.MULTILINE))
    shown = {key: texts[key] for key in texts if key in OPTIONS[name]}
    return {"r": texts["r"].split(";")[0] + "; none given: 8.", **shown} if METHODS[name].ranked else shown


def table(rows: Sequence[Listed], r: int) -> str:
    """The table of methods, no line longer than 100 columns."""
    what = "what is added to a layer; paper"
    lines = [f"{'method':<14}  {what:<{_WHAT}} {'trained':>11}  merge route export by", "-" * WIDTH]
    for row in rows:
        number = "-" if row.trainable is None else f"{row.trainable:,}"
        facts = f"{number:>11}  {_YES[row.mergeable]:<5} {_YES[row.routed]:<5} {_YES[row.exportable]:<6} {row.by}"
        equation, *more = textwrap.wrap(row.equation, _WHAT)
        lines.append(f"{row.name:<14}  {equation:<{_WHAT}} {facts}".rstrip())
        lines += [f"{'':<16}{line}" for line in (*more, *textwrap.wrap(row.paper, WIDTH - 16))]
    lines += [
        "",
        *textwrap.wrap(
            f"trained: parameters of CLIP ViT-B/32 (vision tower) at r={r}, six layers of every block adapted; - where "
            "r is no multiple of the 8 experts. merge: into the base weights. route: tokens to experts, so that the "
            "update depends on the input. export: as a LoRA that other tools open. by: whose implementation. "
            f"`{PROG} NAME` explains one, docs/adapters.md says which when.",
            WIDTH,
        ),
    ]
    return "\n".join(lines)


def explanation(row: Listed, r: int) -> str:
    """One method with its options and their defaults."""
    method = METHODS[row.name]
    lines = [f"{row.name}: {row.equation}"]
    lines += [f"  {text}" for text in (row.paper, method.note) if text]
    if row.trainable is not None:
        rank = f" at r={r}" if method.ranked else ""
        lines.append(f"  trains {row.trainable:,} parameters of CLIP ViT-B/32{rank}")
    if row.by:
        routed = "routes tokens to experts, " if row.routed else ""
        merges = "merges into the base weights" if row.mergeable else "cannot be merged"
        exports = "exports as a LoRA" if row.exportable else "cannot be exported as a LoRA"
        lines.append(f"  {routed}{merges}, {exports}; implemented by {row.by}")
    if method.scheduled:
        lines.append("  Some of it happens between steps: a loop of your own needs common.adapters.AdapterSchedule.")
    wrapped = [part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="  ")]
    options = options_of(row.name)
    wrapped += ["", "options, adapter.KEY in a recipe and --adapter.KEY on the command line:"] if options else []
    for key, text in options.items():
        wrapped += textwrap.wrap(f"{key:<17} {text}", WIDTH, initial_indent="  ", subsequent_indent=" " * 20)
    return "\n".join(wrapped)
