"""Weights files of CLIP models: read without running code, loaded strictly, written in open_clip's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import open_clip
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from common.errors import UserError
from common.weights import damaged, read_pickle, write_tensors
from common.words import listed
from vit_classify.config import Activation

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
_EXTRA = ("input_resolution", "context_length", "vocab_size")  # sizes that OpenAI's own files carry along


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a weights file, without running code from it.

    Raises:
        UserError: no such file, truncated, not a weights file, or a pickle of more than tensors.
    """
    if not path.is_file():
        raise UserError(f"no weights file at {path}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else read_pickle(path)
    except SafetensorError as error:
        raise damaged(path, error) from error
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], origin: Path) -> None:
    """Copy a state dict into a module; every key must fit, in name, shape and finiteness.

    Args:
        module: receives the values in its own dtype and device.
        state: names with tensors; the sizes that OpenAI's own files carry along are passed over.
        origin: the file, for the message.

    Raises:
        UserError: naming the keys that are missing, unexpected, of another shape, or not finite.
    """
    wanted = module.state_dict()
    state = {key: value for key, value in state.items() if key in wanted or key not in _EXTRA}
    for key in ("logit_scale", "logit_bias"):  # a number in some files, one element in others
        if key in state and key in wanted and state[key].numel() == wanted[key].numel() == 1:
            state[key] = state[key].reshape(wanted[key].shape)
    both = wanted.keys() & state.keys()
    problems = {
        "missing": sorted(wanted.keys() - state.keys()),
        "unexpected": sorted(state.keys() - wanted.keys()),
        "of another shape": [
            f"{key} {tuple(state[key].shape)}, the model has {tuple(wanted[key].shape)}"
            for key in sorted(both)
            if state[key].shape != wanted[key].shape
        ],
        "not finite": [key for key in sorted(both) if not torch.isfinite(state[key]).all()],
    }
    lines = [_some(what, names) for what, names in problems.items() if names]
    if lines:
        if any(key.startswith(("vision_model.", "text_model.")) for key in state):
            lines.append("the names are those of transformers; take the open_clip file of this model")
        raise UserError(f"{origin} does not fit the model: " + "; ".join(lines))
    module.load_state_dict(state)


def write_local(
    state: Mapping[str, Tensor],
    model_cfg: Mapping[str, Any],
    directory: str | Path,
    preprocess: Mapping[str, Any] | None = None,
) -> Path:
    """Write an open_clip model as a folder that `local-dir:` reads, here and in open_clip itself.

    Args:
        state: of an `open_clip.CLIP` (or the like), with its packed attention; the sizes that OpenAI's own files carry
            along are left out.
        model_cfg: `embed_dim`, `vision_cfg`, `text_cfg`, and `quick_gelu` where it applies.
        directory: made if absent.
        preprocess: `mean`, `std` and the like; none given: OpenAI's.

    Returns:
        The directory.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    described = {"model_cfg": dict(model_cfg), "preprocess_cfg": {**openai_preprocess(), **(preprocess or {})}}
    (directory / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n")
    kept = {key: value for key, value in state.items() if key not in _EXTRA}
    write_tensors(directory / WEIGHTS_FILE, kept, {"activation": activation_of(model_cfg)})
    return directory


def activation_of(described: Mapping[str, Any]) -> str:
    """The activation that one of open_clip's configs or tags means."""
    return "quick_gelu" if described.get("quick_gelu", False) else "gelu"


def activation_in(path: Path) -> str | None:
    """What `write_local` noted in a safetensors file; None for files of other origin."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            told = (file.metadata() or {}).get("activation")
    except SafetensorError:
        return None  # `read_tensors` will say what is wrong with the file
    return told if told in get_args(Activation) else None


def openai_preprocess() -> dict[str, Any]:
    """How OpenAI's pictures were prepared, which is also open_clip's default."""
    return {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }


def _some(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}: {listed(names, 4)}"
