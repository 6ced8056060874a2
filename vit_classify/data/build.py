"""Making a cache: in parallel, once for all processes, going on after a kill, never half-finished under its name."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from tqdm import tqdm

from common.cache import locked
from common.errors import UserError
from common.files import fsync_path
from common.pictures import DecodeError
from common.training.loader import items_of
from common.write_errors import free_bytes, is_denied, is_full
from vit_classify.data.sources import Source
from vit_classify.data.store import (
    CHUNK,
    UNREADABLE,
    CacheStore,
    DecodeStore,
    Index,
    Store,
    hash_bytes,
    key_of,
    load_picture,
    read_index,
    write_index,
)


class Pass:
    """The pass over one source: its folder, and how to get from nothing, a part or a whole to a store.

    Args:
        source: the pictures.
        name: for the folder's name and messages, such as `dtd-train`.
        root: folder of all caches.
        store_size: longest allowed shorter side.
        pixels: keep the pixels (`cache`) or only the sizes (`decode`).
        strict: an unreadable picture is an error.
        num_workers: processes that decode; 0: this one.
    """

    def __init__(
        self, source: Source, name: str, root: Path, store_size: int, pixels: bool, strict: bool, num_workers: int
    ) -> None:
        self.source, self.name, self.store_size = source, name, store_size
        self.pixels, self.strict, self.num_workers = pixels, strict, num_workers
        kind = "pixels" if pixels else "sizes"
        self.key = key_of(source, store_size, kind)
        self.folder = root / "vit" / f"{name}-{kind}-{self.key[:16]}"

    def verify(self) -> Index | str:
        """The finished pass with every hash checked, or why there is none to be used."""
        index = read_index(self.folder, self.key, self.pixels)
        if isinstance(index, Index) and any(self._can_be_read(row) for row, why in index.skipped if UNREADABLE in why):
            return "pictures that could not be read then can be read now"
        return index

    def _can_be_read(self, row: int) -> bool:
        # A permission that was missing, or a disk that did not answer, leaves no mark in the key.
        try:
            self.source.raw(row)
        except OSError:
            return False
        return True

    def open(self) -> tuple[Store, Index]:
        """The store and its index, made first where they are missing or damaged.

        Raises:
            UserError: no space, no permission, no locks, or (strict) an unreadable picture.
        """
        index = self.verify()
        if isinstance(index, str):
            with _no_space_is_explained(self):
                self.folder.mkdir(parents=True, exist_ok=True)
                with locked(self.folder, self.name):
                    index = self._make()
        if index.skipped and self.strict:
            self._refuse(*index.skipped[0])
        return self._store(index), index

    def _make(self) -> Index:
        index = self.verify()  # another process may have made it while this one waited for the lock
        if isinstance(index, Index):
            return index
        if (self.folder / "index.json").exists():
            warnings.warn(f"the cache {self.folder} is made anew: {index}", stacklevel=4)
            for name in ("index.json", "pixels.bin"):
                (self.folder / name).unlink(missing_ok=True)
        return self._run()

    def _store(self, index: Index) -> Store:
        return CacheStore(self.folder, index) if self.pixels else DecodeStore(self.source, self.store_size, index)

    def _refuse(self, row: int, reason: str) -> None:
        raise UserError(
            f"{self.source.describe(row)} cannot be used: {reason}; mend or remove it, or set data.on_error=skip "
            "to leave out such pictures and have them counted"
        )

    def _run(self) -> Index:
        done = _read_journal(self.folder, self.key) if self.pixels else []
        with open(self.folder / "pixels.partial", "ab") as file, open(self.folder / "journal.jsonl", "a") as journal:
            size = sum(_chunk_bytes(entry) for entry in done)
            file.truncate(size)
            _rewrite(journal, [{"key": self.key}, *done])
            for entry, pixels in self._decode_from(len(done)):
                if entry["skipped"] and self.strict:
                    self._refuse(*entry["skipped"][0])
                if self.pixels:
                    file.write(pixels)
                    file.flush()
                    _append(journal, entry)
                done.append(entry)
            os.fsync(file.fileno())
        index = Index(
            key=self.key,
            shapes=[shape for entry in done for shape in entry["shapes"]],
            skipped=[skip for entry in done for skip in entry["skipped"]],
            hashes=[entry["hash"] for entry in done] if self.pixels else [],
        )
        self._publish(index)
        return index

    def _publish(self, index: Index) -> None:
        partial = self.folder / "pixels.partial"
        if self.pixels:
            os.replace(partial, self.folder / "pixels.bin")
            fsync_path(self.folder)
        else:
            partial.unlink()
        write_index(self.folder, index)
        (self.folder / "journal.jsonl").unlink()

    def _decode_from(self, first_chunk: int) -> Iterator[tuple[dict[str, Any], bytes]]:
        chunks = _Chunks(self.source, self.store_size, self.pixels, first_chunk)
        what = "caching" if self.pixels else "checking"
        with tqdm(
            desc=f"{what} {self.name}",
            total=len(self.source),
            initial=min(first_chunk * CHUNK, len(self.source)),
            unit="pictures",
            disable=None,
        ) as bar:
            for entry, pixels in items_of(chunks, self.num_workers):
                yield entry, pixels
                bar.update(len(entry["shapes"]))

    def bytes_needed(self) -> int:
        """Size of the whole cache, estimated from the part in the journal; 0 where nothing is known."""
        done = _read_journal(self.folder, self.key)
        pictures = sum(len(entry["shapes"]) for entry in done)
        return sum(map(_chunk_bytes, done)) * len(self.source) // pictures if pictures else 0

    def remove_partial(self) -> None:
        for name in ("pixels.partial", "journal.jsonl"):
            (self.folder / name).unlink(missing_ok=True)


class _Chunks(Dataset[tuple[dict[str, Any], bytes]]):
    """Item i: journal entry and, if they are kept, pixels of chunk `first + i`."""

    def __init__(self, source: Source, store_size: int, keep: bool, first: int) -> None:
        self.source, self.store_size, self.keep, self.first = source, store_size, keep, first

    def __len__(self) -> int:
        return -(-len(self.source) // CHUNK) - self.first

    def __getitem__(self, item: int) -> tuple[dict[str, Any], bytes]:
        if not 0 <= item < len(self):
            raise IndexError(item)
        start = (self.first + item) * CHUNK
        pictures, shapes, skipped = [], [], []
        for row in range(start, min(start + CHUNK, len(self.source))):
            try:
                pixels = load_picture(self.source, row, self.store_size)
            except DecodeError as error:
                skipped.append([row, str(error)])
                shapes.append([0, 0])
            else:
                pictures.append(pixels.tobytes() if self.keep else b"")
                shapes.append(list(pixels.shape[:2]))
        data = b"".join(pictures)
        return {"shapes": shapes, "skipped": skipped, "hash": hash_bytes(data)}, data


def _chunk_bytes(entry: dict[str, Any]) -> int:
    return sum(3 * height * width for height, width in entry["shapes"])


def _append(journal: Any, entry: dict[str, Any]) -> None:
    journal.write(json.dumps(entry) + "\n")
    journal.flush()


def _rewrite(journal: Any, entries: list[dict[str, Any]]) -> None:
    journal.truncate(0)
    for entry in entries:
        _append(journal, entry)


def _read_journal(folder: Path, key: str) -> list[dict[str, Any]]:
    """Entries of the chunks that a killed pass has left whole: hashes are checked, the rest is forgotten."""
    done: list[dict[str, Any]] = []
    try:
        lines = (folder / "journal.jsonl").read_text().splitlines()
        if not lines or json.loads(lines[0]) != {"key": key}:
            return []
        with open(folder / "pixels.partial", "rb") as file:
            for line in lines[1:]:
                entry = json.loads(line)
                if hash_bytes(file.read(_chunk_bytes(entry))) != entry["hash"]:
                    break
                done.append(entry)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a torn last line or a missing file: what was read so far stands
    return done


@contextlib.contextmanager
def _no_space_is_explained(task: Pass) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_full(error):
            needed = task.bytes_needed()
            task.remove_partial()
            free = free_bytes(task.folder)
            about = f"needs about {needed:,} bytes" if needed else "does not fit"
            raise UserError(
                f"no space left: the cache of {task.name} {about} in {task.folder} where {free:,} are free "
                f"({error.strerror}); free some, set data.cache_dir to another disk, lower data.store_size, "
                "or set data.pixels=decode. The unfinished cache was removed"
            ) from error
        if is_denied(error):
            raise UserError(
                f"the cache of {task.name} cannot be written to {task.folder} ({error.strerror}); "
                "set data.cache_dir to a folder of yours"
            ) from error
        raise
