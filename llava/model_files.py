"""Where a model's files lie, and their tensors: found by Hub id or path, read one at a time, no code run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from huggingface_hub import constants, snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import UserError
from common.weights import damaged, read_pickle
from common.words import listed
from llava.demo import PREFIX, model_folder

CONFIG_FILE = "config.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
_TEXT_FILES = ["*.json", "*.txt", "*.jinja", "tokenizer.model", "*.tiktoken"]
# in the order in which they are looked for; safetensors first
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = (
    "model.safetensors",
    "pytorch_model.bin",
    # of a projector alone: LLaVA's, XTuner's
    "mm_projector.safetensors",
    "mm_projector.bin",
    "projector/model.safetensors",
)


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file, read when it is indexed; what transformers' loader takes for a safetensors slice.

    Args:
        shape: of the tensor.
        read: gives the part that an index selects, on the CPU.
    """

    shape: tuple[int, ...]
    read: Callable[[Any], Tensor]

    def __getitem__(self, index: Any) -> Tensor:
        return self.read(index)

    @classmethod
    def of(cls, tensor: Tensor) -> LazyTensor:
        """A tensor that is in memory, or mapped into it, already."""
        return cls(tuple(tensor.shape), lambda index: tensor[index])

    def split(self, shape: Iterable[int], take: Callable[[Tensor], Tensor]) -> LazyTensor:
        """A tensor of `shape` that is computed from the whole of this one by `take`."""
        return LazyTensor(tuple(shape), lambda index: take(self[...])[index])


Weights = dict[str, LazyTensor]


def find_folder(key: str, name: str) -> Path:
    """The folder of a model: a local path, or a Hub repository from the cache or else from the network.

    Args:
        key: the recipe's key, for messages.
        name: path, Hub id, or `builtin:` and the name of a model that ships.

    Raises:
        UserError: there is no such folder, or the Hub has no such model or cannot be reached.
    """
    if name.startswith(PREFIX):
        return model_folder(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{key}={name} is a file; give the folder of a model")
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"{key}={name}: there is no such folder (and it is no Hub id, which would be ORG/NAME)")
    cache, reason = constants.HF_HUB_CACHE, "the repository has no weights that can be read"
    try:  # first the cache alone: without a network the library would ask it only after long retries
        folder = Path(snapshot_download(name, cache_dir=cache, local_files_only=True))
        if _is_complete(folder):
            return folder
    except Exception:
        pass  # not in the cache; whatever the Hub says below is the better message
    try:
        for weights in ("*.safetensors", "*.bin"):
            folder = Path(snapshot_download(name, cache_dir=cache, allow_patterns=[*_TEXT_FILES, weights]))
            if _is_complete(folder):  # without a network the library gives what the cache has of it
                return folder
    except Exception as error:
        reason = type(error).__name__
    raise UserError(
        f"{key}={name} is neither a folder here nor whole in the cache {cache}, nor to be had from the Hub now "
        f"({reason}); where there is a network run `hf download {name}` and copy the cache here, or set {key} to the "
        "path of a folder"
    )


def read_config(key: str, folder: Path) -> dict[str, Any]:
    """The content of a model folder's `config.json`.

    Raises:
        UserError: it is missing or no JSON object: the folder holds no model.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        inside = ", ".join(sorted(each.name for each in folder.iterdir())[:6]) or "nothing"
        raise UserError(f"{key}={folder} is not the folder of a model: it has no {CONFIG_FILE} (it holds {inside})")
    return read_json_object(path)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; a JSON object is expected")
    return content


def read_weights(key: str, path: Path) -> Weights:
    """All tensors of a weights file, or of the weights file(s) in a model folder; nothing but headers is read.

    Raises:
        UserError: no weights there, a file of an index missing, damaged, or a pickle of more than tensors.
    """
    if path.is_file():
        return _open(path)
    for index_name in _INDICES:
        if (path / index_name).is_file():
            return _read_index(path / index_name)
    for file_name in _SINGLE:
        if (path / file_name).is_file():
            return _open(path / file_name)
    raise UserError(f"{key}={path} holds no weights; looked for {', '.join((*_INDICES, *_SINGLE[:2]))}")


def fingerprint(weights: Mapping[str, LazyTensor]) -> str:
    """A hash of every tensor's name, shape and first row: tells models apart without reading all of them."""
    digest = xxhash.xxh3_128()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        row = tensor[:1] if tensor.shape else tensor[...]
        digest.update(row.to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _is_complete(folder: Path) -> bool:
    for index_name in _INDICES:
        if (folder / index_name).is_file():
            try:
                files = set(json.loads((folder / index_name).read_text())["weight_map"].values())
            except (OSError, ValueError, KeyError, AttributeError):
                return False
            if all((folder / name).is_file() for name in files):
                return True
    return any((folder / name).is_file() for name in _SINGLE)


def _read_index(index: Path) -> Weights:
    try:
        places = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is not an index of weights files ({error!r}); fetch it again") from error
    weights: Weights = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise UserError(f"{index} names {name!r}, which is not a file beside it")
        weights.update(_open(index.parent / name))
    absent = sorted(places.keys() - weights.keys())
    if absent:
        raise UserError(f"{index} promises tensors that its files do not hold: {listed(absent, 6)}")
    return weights


def _open(path: Path) -> Weights:
    if not path.is_file():
        raise UserError(f"{path} is missing; fetch the model again")
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return {name: LazyTensor.of(tensor) for name, tensor in read_pickle(path, mapped=True).items()}


def _open_safetensors(path: Path) -> Weights:
    try:
        file = safe_open(path, framework="pt")
        weights = {}
        for name in file.keys():  # noqa: SIM118 - no mapping
            part = file.get_slice(name)
            weights[name] = LazyTensor(tuple(part.get_shape()), part.__getitem__)
        return weights
    except SafetensorError as error:
        raise damaged(path, error) from error
