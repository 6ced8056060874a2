"""Weights files of CLIP models: read without running code, loaded strictly, written in open_clip's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import open_clip
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import UserError
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
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(
            f"{path} ({path.stat().st_size} bytes) is damaged or incomplete: {error}; fetch it again"
        ) from error
    except Exception as error:  # torch.load raises a different class for each way in which a file is wrong
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} cannot be read as plain tensors ({reason}); pickled code and TorchScript archives are not "
            "run here: convert it to safetensors on a machine where you trust it, or fetch it again"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict: expected names with tensors")
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


def save_local(
    model: nn.Module,
    model_cfg: Mapping[str, Any],
    directory: str | Path,
    preprocess: Mapping[str, Any] | None = None,
) -> Path:
    """Write an open_clip model as a folder that `local-dir:` reads, here and in open_clip itself.

    Args:
        model: `open_clip.CLIP` (or the like), with its packed attention.
        model_cfg: `embed_dim`, `vision_cfg`, `text_cfg`, and `quick_gelu` where it applies.
        directory: made if absent.
        preprocess: `mean`, `std` and the like; none given: OpenAI's.

    Returns:
        The directory.
    """
    return write_local(model.state_dict(), model_cfg, directory, preprocess)


def write_local(
    state: Mapping[str, Tensor],
    model_cfg: Mapping[str, Any],
    directory: str | Path,
    preprocess: Mapping[str, Any] | None = None,
) -> Path:
    """`save_local` of a state dict; sizes that OpenAI's own files carry along are left out."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    described = {"model_cfg": dict(model_cfg), "preprocess_cfg": {**openai_preprocess(), **(preprocess or {})}}
    (directory / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n")
    kept = {key: value.detach().cpu().contiguous() for key, value in state.items() if key not in _EXTRA}
    activation = "quick_gelu" if model_cfg.get("quick_gelu", False) else "gelu"
    save_file(kept, directory / WEIGHTS_FILE, metadata={"format": "pt", "activation": activation})
    return directory


def activation_of(described: Mapping[str, Any]) -> str:
    """The activation that one of open_clip's configs or tags means."""
    return "quick_gelu" if described.get("quick_gelu", False) else "gelu"


def activation_in(path: Path) -> str | None:
    """What `save_local` noted in a safetensors file; None for files of other origin."""
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
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{len(names)} {what}: {', '.join(names[:4])}{rest}"
