"""Tensors that were worked out once, a file for each, in a folder that all processes of a machine share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.cache import locked
from common.errors import UserError
from common.files import TEMPORARY, atomic_write
from common.write_errors import writing_is_explained

_HASH = "xxh3"


def make_missing(folder: Path, keys: list[str], make: Callable[[list[str]], None], what: str) -> None:
    """Make the files of a folder that are not there or damaged; one process at a time, the others then find them.

    Args:
        folder: of the cache; made where it is missing.
        keys: names of the files, without their ending.
        make: is given the keys of those that are to be made, and calls `write` for each as soon as it has it: what a
            killed process has made is kept.
        what: the folder is a cache of, for messages.

    Raises:
        UserError: no space, no permission, or no locks.
    """
    if not _missing(folder, keys):
        return
    with writing_is_explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, what):
            for left in folder.glob(f".*{TEMPORARY}"):  # by a process that was killed
                left.unlink(missing_ok=True)
            missing = _missing(folder, keys)  # another process may have made them while this one waited
            for key, damage in missing.items():
                if damage:
                    warnings.warn(f"{file_of(folder, key)} is made anew: {damage}", stacklevel=3)
            if missing:
                make(list(missing))


def file_of(folder: Path, key: str) -> Path:
    """Where the tensors of a key lie."""
    return folder / f"{key}.safetensors"


def write(folder: Path, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors at their place; the file is whole or absent."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    atomic_write(file_of(folder, key), safetensors.torch.save(tensors, {_HASH: _hash(tensors)}))


def read(folder: Path, key: str, row: int | None = None) -> dict[str, Tensor]:
    """The tensors of a key, or one row of each.

    Raises:
        UserError: they have been removed or damaged since `make_missing`.
    """
    path = file_of(folder, key)
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            found = {name: file.get_tensor(name) if row is None else file.get_slice(name)[row] for name in names}
            # What it gives is mapped from the file: should somebody cut that short, touching it would end the process.
            return {name: tensor.clone() for name, tensor in found.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} was there when the run began and cannot be read now ({error}); start the same command again, "
            "which makes it anew and goes on from the last checkpoint"
        ) from error


def rows(folder: Path, key: str) -> int:
    """Number of rows of a key's tensors."""
    with safe_open(file_of(folder, key), "pt") as file:
        return file.get_slice(next(iter(file.keys()))).get_shape()[0]


def _missing(folder: Path, keys: list[str]) -> dict[str, str]:
    """Keys to be made -> what is wrong with their file, "" where there is none."""
    found = {}
    for key in dict.fromkeys(keys):
        path = file_of(folder, key)
        if not path.exists():
            found[key] = ""
            continue
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                if (file.metadata() or {}).get(_HASH) != _hash(tensors):
                    found[key] = "its content is not what was written"
        except (OSError, SafetensorError) as error:
            found[key] = f"it cannot be read ({error})"
    return found


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
