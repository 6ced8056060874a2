"""Weights files: written whole or not at all, and read, whoever they come from, without running code from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import UserError
from common.files import TEMPORARY, fsync_path, share_as_usual
from common.words import first_line


def read_pickle(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """All tensors of a file that `torch.save` wrote, a state dict or a dict with one under `state_dict`, on the CPU.

    Args:
        path: the file.
        mapped: whether the tensors stay in the file until they are used, where its format allows that.

    Raises:
        UserError: it is truncated, no weights file, or a pickle of more than tensors.
    """
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except RuntimeError as error:
            if not mapped or "mmap" not in str(error):
                raise
            state = torch.load(path, map_location="cpu", weights_only=True)  # the old format, not to be mapped
    except Exception as error:  # torch.load raises a different class for each way in which a file is wrong
        raise UserError(
            f"{path} cannot be read as plain tensors ({first_line(error)}); pickled code is not run here, nor are "
            "TorchScript archives: convert it to safetensors on a machine where you trust it, or fetch it again"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict: expected names with tensors")
    return state


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Put tensors into a safetensors file, which is whole or absent and readable for whom other files are.

    Args:
        path: the file.
        tensors: by name, on any device.
        metadata: beside `{"format": "pt"}`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, temporary, metadata={"format": "pt", **(metadata or {})})
        share_as_usual(temporary)
        fsync_path(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def damaged(path: Path, error: BaseException) -> UserError:
    """What to raise where safetensors cannot open a file."""
    return UserError(f"{path} ({path.stat().st_size} bytes) is damaged or incomplete: {error}; fetch it again")
