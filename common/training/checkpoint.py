"""Checkpoints that are whole or not there.

A checkpoint is written under a name that nobody reads, forced to the disk, and renamed. The rename is the
moment at which it exists. Its manifest lists every file with its size, so that a copy cut short is seen too, and
its hash, so that nothing is loaded that a disk or a copy has changed.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from common.cache import hash_file
from common.files import fsync_path, fsync_tree, share_as_usual, write_json

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")
_PARTIAL = ".partial-"


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was taken."""
    found = _NAME.fullmatch(checkpoint.name)
    assert found is not None, f"not the name of a checkpoint: {checkpoint}"
    return int(found[1])


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies once it is whole."""
    return directory / f"step-{step:08d}"


def whole_checkpoints(directory: Path) -> list[Path]:
    """All whole checkpoints in `directory`, oldest first."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if is_whole(path)), key=step_of)


def newest_checkpoint(directory: Path) -> Path | None:
    """The whole checkpoint of the latest step in `directory`, None where there is none."""
    whole = whole_checkpoints(directory)
    return whole[-1] if whole else None


def is_whole(path: Path) -> bool:
    """Whether `path` is a checkpoint whose every file is there in full length."""
    if not _NAME.fullmatch(path.name) or not (path / MANIFEST).is_file():
        return False
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def is_sound(path: Path) -> bool:
    """Whether `path` is a whole checkpoint whose every byte is as it was written; reads all of it."""
    if not is_whole(path):
        return False
    try:
        hashes = read_manifest(path).get("hashes", {})
        return all(hash_file(path / name) == value for name, value in hashes.items())
    except OSError:
        return False


def newest_sound_checkpoint(directory: Path) -> tuple[Path | None, list[Path]]:
    """The checkpoint to go on from, and the later ones that are damaged."""
    named = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)] if directory.is_dir() else []
    damaged: list[Path] = []
    for path in sorted(named, key=step_of, reverse=True):
        if is_sound(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a whole checkpoint: `step`, `world_size`, `micro_batches`, `config_hash`, `files`, `hashes`."""
    return json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))


def begin(directory: Path, step: int) -> Path:
    """Make the empty folder in which the checkpoint of `step` is to be written, and remove leftovers."""
    directory.mkdir(parents=True, exist_ok=True)
    discard_partial(directory)
    partial = directory / f"{_PARTIAL}{checkpoint_path(directory, step).name}"
    partial.mkdir()
    return partial


def finish(partial: Path, manifest: dict[str, Any]) -> Path:
    """Turn the filled folder of `begin` into a whole checkpoint; returns its path.

    Args:
        partial: the folder.
        manifest: what to note beside the files: `step`, `world_size`, `micro_batches` (of a step), `config_hash`.
    """
    final = checkpoint_path(partial.parent, manifest["step"])
    files = {str(f.relative_to(partial)): f.stat().st_size for f in sorted(partial.rglob("*")) if f.is_file()}
    hashes = {name: hash_file(partial / name) for name in files}
    write_json(partial / MANIFEST, {**manifest, "files": files, "hashes": hashes})
    share_as_usual(partial)
    fsync_tree(partial)
    if final.exists():  # cut short by hand or by a copy, else it would not be written again
        shutil.rmtree(final)
    partial.rename(final)
    fsync_path(final.parent)
    return final


def discard_partial(directory: Path) -> None:
    """Remove what is left of checkpoints that were not finished, and of deletions that were interrupted."""
    for leftover in directory.glob(f"{_PARTIAL}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def rotate(directory: Path, keep: int) -> None:
    """Delete all whole checkpoints but the `keep` newest; at least one always stays."""
    for old in whole_checkpoints(directory)[: -max(keep, 1)]:
        # Renamed first: a deletion that is interrupted must not leave something that looks like a checkpoint.
        doomed = old.rename(old.with_name(f"{_PARTIAL}{old.name}"))
        shutil.rmtree(doomed)
