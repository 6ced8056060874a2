"""The one-time pass over a source's pictures, and the two stores that serve its pixels.

The pass decodes every picture once and finds the unreadable ones. For `pixels=cache` it also keeps the pixels in
one file that is memory-mapped later; for `pixels=decode` it keeps only the sizes. Both stores give the same pixels.

A finished pass is a folder with `index.json` (sizes, unreadable rows, hashes) and, for a cache, `pixels.bin`
(pictures one after the other, each (h, w, 3) uint8). While it is made there are `pixels.partial` and
`journal.jsonl`, from which a killed pass goes on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from common.cache import fingerprint_of
from common.errors import UserError
from common.files import atomic_write
from common.pictures import DecodeError, decode
from vit_classify.data.shrink import shrink
from vit_classify.data.sources import Source

# Part of every key: raise it when the layout or the decoded pixels change.
FORMAT = 1
# Pictures decoded, written, hashed and journalled together.
CHUNK = 64
# Begins the reason of a picture that was not read, in contrast to one that was and is none.
UNREADABLE = "cannot be read: "


class Store(Protocol):
    """Decoded pictures by row of their source."""

    def shape(self, row: int) -> tuple[int, int]:
        """Height and width of the stored picture."""
        ...

    def image(self, row: int) -> np.ndarray:
        """The stored picture, (h, w, 3) uint8, RGB; may be a read-only view."""
        ...


@dataclass(frozen=True)
class Index:
    """What the pass found.

    Args:
        key: names source, settings and format; a folder with another key is foreign.
        shapes: (height, width) of each stored picture, (0, 0) for unreadable ones.
        skipped: [row, reason] of each unreadable picture.
        hashes: xxh3-128 of each chunk's pixels, in order; empty without pixels.
    """

    key: str
    shapes: list[list[int]]
    skipped: list[list[Any]]
    hashes: list[str]

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each stored picture, (N,) int64."""
        shapes = np.array(self.shapes, dtype=np.int64).reshape(-1, 2)
        return shapes[:, 0] * shapes[:, 1] * 3

    def readable(self) -> np.ndarray:
        """Rows of the pictures that can be read, ascending, int64."""
        return np.flatnonzero(self.sizes > 0)


def key_of(source: Source, store_size: int, kind: str) -> str:
    """What a cache stands for: the same key, the same content."""
    return fingerprint_of(FORMAT, kind, store_size, CHUNK, len(source), source.fingerprint)


def hash_bytes(data: bytes) -> str:
    """xxh3-128 in hexadecimal: guards against damage, as fast as memory."""
    return xxhash.xxh3_128_hexdigest(data)


def load_picture(source: Source, row: int, store_size: int) -> np.ndarray:
    """Read, decode and shrink one picture to (h, w, 3) uint8.

    Raises:
        DecodeError: it cannot be read or decoded.
    """
    try:
        data = source.raw(row)
    except OSError as error:
        raise DecodeError(f"{UNREADABLE}{error.strerror or error}") from error
    return shrink(decode(data), store_size)


class DecodeStore:
    """Decodes a picture whenever it is asked for. Same interface and pixels as `CacheStore`."""

    def __init__(self, source: Source, store_size: int, index: Index) -> None:
        self._source, self._store_size = source, store_size
        self._shapes = np.array(index.shapes, dtype=np.int32).reshape(-1, 2)

    def shape(self, row: int) -> tuple[int, int]:
        height, width = self._shapes[row]
        return int(height), int(width)

    def image(self, row: int) -> np.ndarray:
        try:
            pixels = load_picture(self._source, row, self._store_size)
        except DecodeError as error:
            raise UserError(
                f"{self._source.describe(row)} could be read when the data set was checked, and now cannot: {error}"
            ) from error
        if pixels.shape[:2] != self.shape(row):
            raise UserError(f"{self._source.describe(row)} has changed since the data set was checked; start again")
        return pixels


class CacheStore:
    """Pictures in a memory-mapped file."""

    def __init__(self, folder: Path, index: Index) -> None:
        self._path = folder / "pixels.bin"
        self._shapes = np.array(index.shapes, dtype=np.int32).reshape(-1, 2)
        self._starts = np.concatenate([[0], np.cumsum(index.sizes)])
        self._pixels: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the file itself; pickling the map would copy all of it.
        return {**self.__dict__, "_pixels": None}

    def shape(self, row: int) -> tuple[int, int]:
        height, width = self._shapes[row]
        return int(height), int(width)

    def image(self, row: int) -> np.ndarray:
        if self._pixels is None:
            # A plain array on the map: slicing np.memmap objects costs ten times as much.
            self._pixels = np.asarray(np.memmap(self._path, dtype=np.uint8, mode="r"))
        height, width = self.shape(row)
        start = self._starts[row]
        return self._pixels[start : start + height * width * 3].reshape(height, width, 3)


def write_index(folder: Path, index: Index) -> None:
    """Write `index.json`, whole or not at all."""
    content = asdict(index)
    atomic_write(folder / "index.json", json.dumps({"checksum": _checksum(content), **content}))


def _checksum(content: dict[str, Any]) -> str:
    return hash_bytes(json.dumps(content, sort_keys=True).encode())


def read_index(folder: Path, key: str, pixels: bool) -> Index | str:
    """Read a finished pass and check every hash.

    Args:
        folder: where it should be.
        key: what it must stand for.
        pixels: whether it must have pixels.

    Returns:
        the index, or the reason in a few words why there is none to be used.
    """
    try:
        content = json.loads((folder / "index.json").read_text())
        checksum = content.pop("checksum")
        index = Index(**content)
    except FileNotFoundError:
        return "there is none yet"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "its index cannot be read"
    if checksum != _checksum(content):
        return "its index is damaged"
    if index.key != key:
        return "it belongs to other pictures or settings"
    if pixels:
        return _check_pixels(folder / "pixels.bin", index) or index
    return index


def _check_pixels(path: Path, index: Index) -> str | None:
    sizes = index.sizes
    try:
        found = path.stat().st_size
        if found != int(sizes.sum()):
            return f"{path.name} has {found:,} bytes instead of {int(sizes.sum()):,}"
        with open(path, "rb") as file:
            for chunk, expected in enumerate(index.hashes):
                data = file.read(int(sizes[chunk * CHUNK : (chunk + 1) * CHUNK].sum()))
                if hash_bytes(data) != expected:
                    return f"{path.name} is damaged at pictures {chunk * CHUNK} to {chunk * CHUNK + CHUNK - 1}"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return None
