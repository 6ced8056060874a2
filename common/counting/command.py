"""`mosgoat params`: what a method trains, saves and computes on a model, from its shapes alone.

Needs neither weights nor a network: the model is built on the meta device. --model takes a name or a folder with
the config.json of transformers or diffusers. With --memory it says how many bytes training takes on each GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from common.adapters import METHODS
from common.config import OPTIONS, AdapterConfig, Precision
from common.config_checks import adapter_problems
from common.counting.count import Count, count, require_targets
from common.counting.flops import DEFAULT_TOKENS
from common.counting.memory import Setting, memory
from common.counting.models import MODELS, Architecture, find_model
from common.counting.tables import memory_table, one_method, several_methods
from common.errors import UserError
from common.words import did_you_mean

PROG = "mosgoat params"
ALL = "all"
# The fields of a memory setting that are options, under the same names.
_SETTING = tuple(field.name for field in dataclasses.fields(Setting))
# The adapter's settings that a count depends on, beside method, r and targets.
SETTINGS = ("num_experts", "top_k", "init_r", "decompose_both", "decompose_factor", "depth", "num_directions")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; prints a table, or JSON with `--json`."""
    options = read_options(list(argv or []))
    architecture = find_model(options.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PEFT's calls into transformers
        if options.memory:
            return _print_memory(architecture, options)
        _require_tokens(architecture, options.tokens)
        if options.method == ALL:
            counts, left_out = count_all(architecture, options)
        else:
            counts, left_out = [count(architecture, _sound_adapter(options), tokens=options.tokens)], {}
    if options.json:
        content = {"counts": [to_dict(each) for each in counts], "left_out": left_out}
        print(json.dumps(content, indent=2, ensure_ascii=False))
    elif options.method == ALL:
        print(several_methods(architecture, counts, left_out))
    else:
        print(one_method(architecture, counts[0]))
    return 0


def _sound_adapter(options: argparse.Namespace) -> AdapterConfig:
    adapter = adapter_of(options, options.method)
    problems = [line.replace("adapter.", "--") for line in adapter_problems(adapter)]
    if problems:
        raise UserError("\n  - ".join(["this cannot be counted:", *problems]))
    return adapter


def _print_memory(architecture: Architecture, options: argparse.Namespace) -> int:
    if options.method in (ALL, "linear_probe"):
        raise UserError(f"--memory with --method {options.method}: name one method that trains a part of the model")
    adapter = _sound_adapter(options)
    setting = Setting(**{key: getattr(options, key) for key in _SETTING if getattr(options, key) is not None})
    found = memory(architecture, adapter, setting)
    if options.json:
        print(json.dumps({**dataclasses.asdict(found), "total": found.total}, indent=2))
    else:
        print(memory_table(architecture, adapter, setting, found))
    return 0


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, names of methods and models not yet looked up but for the method's.

    Raises:
        UserError: an unknown method, or an empty list of targets.
    """
    parser = argparse.ArgumentParser(
        PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.epilog = f"models: {', '.join(MODELS)}\nmethods: {', '.join(_countable())}, or {ALL}"
    parser.add_argument("--model", required=True, help="a model of the list below, or a folder with a config.json")
    parser.add_argument("--method", required=True, help=f"a method of the list below, or {ALL} for one row for each")
    parser.add_argument("--r", type=int, default=8, help="total rank of every adapted layer; default: 8")
    parser.add_argument("--targets", help="names of layers or ends of names, by commas; default: the papers' own")
    parser.add_argument("--num_experts", type=int, help="experts of routed methods; default: 8")
    parser.add_argument("--top_k", type=int, help="experts that a token uses; default: 2")
    parser.add_argument("--init_r", type=int, help="rank at the start, adalora; default: 1.5 r")
    parser.add_argument("--decompose_both", action="store_true", default=None, help="lokr: both factors of low rank")
    parser.add_argument("--decompose_factor", type=int, help="lokr: size of the small factor; default: -1, square")
    parser.add_argument("--depth", type=int, help="neat: hidden layers; default: 0")
    parser.add_argument("--num_directions", type=int, help="lora_dash: trained directions; default: 8")
    parser.add_argument(
        "--tokens",
        type=int,
        help=f"of a text, or of a LLaVA's sample with its picture; default: {DEFAULT_TOKENS}, 2048",
    )
    parser.add_argument("--json", action="store_true", help="print JSON: exact integers, bytes, FLOPs")
    _add_memory_options(parser.add_argument_group("memory in training"))
    options = parser.parse_args(argv)
    given = [key for key in _SETTING if key != "tokens" and getattr(options, key) is not None]
    if given and not options.memory:
        raise UserError(f"--{given[0].replace('_', '-')} has no effect without --memory")
    if options.method not in (*METHODS, ALL):
        raise UserError(f"--method={options.method} is unknown; {did_you_mean(options.method, [*METHODS, ALL])}")
    if options.targets is not None:
        options.targets = [word.strip() for word in options.targets.split(",") if word.strip()]
        if not options.targets:
            raise UserError("--targets names nothing; separate names by commas, as in --targets q_proj,v_proj")
    return options


def _add_memory_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--memory", action="store_true", help="bytes on each GPU instead of parameters and FLOPs")
    group.add_argument("--gpus", type=int, help="GPUs that train together; default: 1")
    group.add_argument("--batch-per-gpu", type=int, help="samples of a micro-batch on a GPU; default: 1")
    group.add_argument("--supervised", type=int, help="tokens of a sample with logits; default: all of its text")
    group.add_argument("--precision", choices=get_args(Precision), help="of frozen weights; default: bf16")
    group.add_argument("--quantize", choices=["nf4"], help="keep the language model in 4 bit")
    group.add_argument("--shard", action="store_true", default=None, help="divide the frozen weights among the GPUs")
    group.add_argument("--checkpointing", action="store_true", default=None, help="recompute blocks in the backward")
    group.add_argument("--tower-r", type=int, help="rank on a LLaVA's vision tower; default: that of --r")


def adapter_of(options: argparse.Namespace, method: str, settings: Iterable[str] = SETTINGS) -> AdapterConfig:
    """The adapter section that the command line stands for, without dropout, which is not counted."""
    given = {key: getattr(options, key) for key in settings if getattr(options, key) is not None}
    targets = options.targets if METHODS[method].build is not None else None
    return AdapterConfig(method=method, r=options.r, dropout=0.0, target_modules=targets, **given)  # type: ignore[arg-type]


def count_all(architecture: Architecture, options: argparse.Namespace) -> tuple[list[Count], dict[str, str]]:
    """Every method with the settings that have an effect on it, and why the others are left out.

    Raises:
        UserError: a target matches nothing.
    """
    require_targets(architecture, architecture.make(), options.targets or architecture.targets)
    counts, left_out = [], {}
    for method in _countable():
        adapter = adapter_of(options, method, [key for key in SETTINGS if key in OPTIONS[method]])
        problems = [line.replace("adapter.", "--") for line in adapter_problems(adapter)]
        try:
            if problems:
                raise UserError("; ".join(problems))
            counts.append(count(architecture, adapter, tokens=options.tokens))
        except UserError as error:
            left_out[method] = str(error)
    return counts, left_out


def to_dict(counted: Count) -> dict[str, Any]:
    """A count as JSON values."""
    return {
        **dataclasses.asdict(counted),
        "percent": counted.percent,
        "paper_percent": counted.paper_percent,
    }


def _countable() -> list[str]:
    """All methods but the one that trains nothing of the model."""
    return [name for name in METHODS if name != "linear_probe"]


def _require_tokens(architecture: Architecture, tokens: int | None) -> None:
    if tokens is not None and architecture.kind != "text":
        raise UserError(f"--tokens={tokens} has no effect on {architecture.name}; it is for language models")
    if tokens is not None and tokens < 1:
        raise UserError(f"--tokens={tokens} must be at least 1")
