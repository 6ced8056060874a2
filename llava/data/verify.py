"""The pass over the pictures of a file: with all cores, going on where it was stopped.

Pictures are dealt into chunks by a hash of their names, so that a few new conversations change a few chunks. What was
found of a chunk stays valid as long as its files keep their sizes and times; it is kept in a journal beside the index,
for every file of conversations that uses the same image root.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash
from torch.utils.data import Dataset
from tqdm import tqdm

from common.cache import fingerprint_of, locked
from common.files import append_json_line, atomic_write, read_json_lines
from common.training.loader import items_of
from llava.data.pictures import CHECKS, UNREADABLE, Check, Stamp, find, problem_of
from llava.data.store import Rows, write_pictures, writing

# Pictures of a chunk, about; they are verified, journalled and reused together.
CHUNK = 128
# Fewer chunks are done before worker processes have started.
_FEW = 4
# What another process of this run has just verified is not looked at again.
_STARTED = time.time()
_ENTRY = {"names", "stamp", "check", "problems", "moved"}


@dataclass
class Verified:
    """What is known of a file's pictures.

    Args:
        root: the image root.
        check: how closely they were looked at.
        pictures: how many there are.
        problems: name -> [why it cannot be used, bytes, modification time].
        moved: pictures that lie under another ending than the file says.
        places: names them and where they lie.
    """

    root: str
    check: Check
    pictures: int = 0
    problems: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    moved: int = 0
    places: str = ""


def open_pictures(rows: Rows, folder: Path, root: Path, check: Check, workers: int) -> tuple[Path, Verified]:
    """Where the rows' pictures lie, verified as far as they were not; `folder` must be locked.

    Every file's size and time are looked at; what has changed since it was read last is read again. The other
    processes of a run take what the first of them has found.

    Args:
        rows: the conversations.
        folder: where their indices are kept.
        root: the image root.
        check: how closely to look, at least; what was once looked at more closely stays so.
        workers: processes to verify with; 0: this one.

    Returns:
        the Arrow file that names the picture of each row (null where it cannot be used), and what was found.
    """
    real = os.path.realpath(root)
    name = fingerprint_of(real)[:16]
    known, arrow = folder / f"verified-{name}.json", folder / f"pictures-{name}.arrow"
    before = _read(known) if arrow.is_file() else None
    if before is not None:
        check = max(check, before.check, key=CHECKS.index)
        if before.check == check and known.stat().st_mtime >= _STARTED:
            return arrow, before
    names = {image for batch in rows.batches("image") for image in batch if image is not None}
    shared = folder.parent / f"pictures-{name}"
    with writing(shared), locked(shared, "the pictures"):
        problems, moved = _verify(names, real, check, shared / "journal.jsonl", workers)
    index = Verified(real, check, len(names), problems, len(moved), fingerprint_of(moved))
    if index == before:
        os.utime(known)
        return arrow, index

    def place(image: str | None) -> str | None:
        return None if image is None or image in problems else moved.get(image, image)

    known.unlink(missing_ok=True)
    write_pictures(arrow, (place(image) for batch in rows.batches("image") for image in batch))
    atomic_write(known, json.dumps(asdict(index)))
    return arrow, index


def _read(path: Path) -> Verified | None:
    try:
        index = Verified(**json.loads(path.read_text()))
        index.problems = {name: (why, size, modified) for name, (why, size, modified) in index.problems.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return index if index.check in CHECKS else None


def _verify(
    names: Iterable[str], root: str, check: Check, journal: Path, workers: int
) -> tuple[dict[str, tuple[str, int, int]], dict[str, str]]:
    """Problems, and pictures under another ending, by name."""
    chunks = _deal(sorted(names))
    done = {entry["names"]: entry for entry in read_json_lines(journal) if entry.keys() >= _ENTRY}
    found = items_of(_Chunks(chunks, root, check, done), 0 if len(chunks) < _FEW else workers)
    problems: dict[str, tuple[str, int, int]] = {}
    moved: dict[str, str] = {}
    entries = []
    with tqdm(desc=f"checking pictures ({check})", total=sum(map(len, chunks)), unit="", disable=None) as bar:
        for entry, size in found:
            if entry.pop("new", False):
                append_json_line(journal, entry)
            entries.append(entry)
            problems.update({name: (why, size, time) for name, (why, size, time) in entry["problems"].items()})
            moved.update(entry["moved"])
            bar.update(size)
    # Only the newest of each chunk, so that the journal does not grow from pass to pass; other files' chunks stay.
    done.update({entry["names"]: entry for entry in entries})
    atomic_write(journal, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in done.values()))
    return problems, moved


def _deal(names: list[str]) -> list[list[str]]:
    """Chunks by a hash of the name; their number is a power of two, so that it seldom changes."""
    buckets = 1 << max(0, (len(names) // CHUNK).bit_length())
    chunks: dict[int, list[str]] = defaultdict(list)
    for name in names:
        chunks[xxhash.xxh3_64_intdigest(name.encode()) % buckets].append(name)
    return [chunks[bucket] for bucket in sorted(chunks)]


class _Chunks(Dataset[tuple[dict[str, Any], int]]):
    """Item i: the journal's entry of chunk i, and its number of pictures."""

    def __init__(self, chunks: list[list[str]], root: str, check: Check, done: Mapping[str, dict[str, Any]]) -> None:
        self._chunks, self._root, self._check, self._done = chunks, root, check, done

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, item: int) -> tuple[dict[str, Any], int]:
        if not 0 <= item < len(self):
            raise IndexError(item)
        names = self._chunks[item]
        stamps = [find(self._root, name) for name in names]
        key, stamp = fingerprint_of(names)[:32], fingerprint_of(stamps)[:32]
        known = self._done.get(key)
        if known and known["stamp"] == stamp and self._answers(known):
            return dict(known), len(names)
        entry = {"names": key, "stamp": stamp, "check": self._check, "new": True}
        return {**entry, **self._look(names, stamps)}, len(names)

    def _answers(self, known: dict[str, Any]) -> bool:
        # A permission that was missing, or a disk that did not answer, leaves no mark in the stamp.
        unread = any(why.startswith(UNREADABLE) for why, _, _ in known["problems"].values())
        return not unread and CHECKS.index(known["check"]) >= CHECKS.index(self._check)

    def _look(self, names: list[str], stamps: list[Stamp]) -> dict[str, Any]:
        problems, moved = {}, {}
        for name, stamp in zip(names, stamps, strict=True):
            why = problem_of(self._root, stamp, self._check)
            if why:
                problems[name] = [why, stamp.size, stamp.modified]
            elif stamp.name != name:
                moved[name] = stamp.name
        return {"problems": problems, "moved": moved}
