"""The model that a command line names: a finished run, or the folder of a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import xxhash

from common.cache import hash_file
from common.commands import add_device_option
from common.config import Precision
from common.devices import usable_device
from common.errors import UserError
from llava.config import ModelConfig, TemplateName
from llava.model_base import LlavaBase, load_model
from llava.model_run import ADAPTER, PROJECTOR_FILE, load_run


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """`--run` or `--model`, and what goes with them."""
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--run", type=Path, help="directory of a finished run")
    chosen.add_argument("--model", help="Hub id or folder of a LLaVA model in transformers' form")
    parser.add_argument(
        "--template",
        choices=get_args(TemplateName),
        help="of --model; default: tokenizer, the chat template that it brings",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="of the frozen weights; default: the run's, or bf16 on a GPU and float32 without one",
    )
    add_device_option(parser)


def open_model(options: argparse.Namespace) -> LlavaBase:
    """Load what the options name.

    Raises:
        UserError: an option without effect, or a run or model that cannot be opened.
    """
    device = usable_device(options.device)
    if options.run is not None:
        if options.template is not None:
            raise UserError(f"--template={options.template} has no effect with --run, which has its own")
        return load_run(options.run, device=device, precision=options.precision)
    precision: Precision = options.precision or ("float32" if device.type == "cpu" else "bf16")
    config = ModelConfig(name=options.model)
    return load_model(config, template=options.template or "tokenizer", precision=precision, device=device)


def identity(options: argparse.Namespace, base: LlavaBase) -> str:
    """A hash of the weights in use: the base's fingerprints, and all of what the run has trained."""
    digest = xxhash.xxh3_128(f"{base.fingerprint} {base.projector_fingerprint}".encode())
    if getattr(base.llava(), "is_loaded_in_4bit", False):
        digest.update(b"nf4")
    if options.run is not None:
        files = [options.run / PROJECTOR_FILE, *sorted((options.run / ADAPTER).glob("*"))]
        for file in files:
            if file.is_file():
                digest.update(file.name.encode())
                digest.update(hash_file(file).encode())
    return digest.hexdigest()
