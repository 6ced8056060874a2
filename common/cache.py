"""Folders that keep what was worked out once, shared by all processes of a machine, and the hashes that name it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import xxhash

from common.errors import UserError


def cache_root(cache_dir: str | None) -> Path:
    """`cache_dir`, else `$MOSGOAT_CACHE`, else `~/.cache/mosgoat`."""
    return Path(cache_dir or os.environ.get("MOSGOAT_CACHE") or "~/.cache/mosgoat").expanduser()


def fingerprint_of(*parts: Any) -> str:
    """SHA-256 of a JSON-serialisable description."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def mark_of_sources(folder: Path, *names: str) -> str:
    """Twelve hexadecimal digits for what some source files say: a cache of what they draw is not another version's.

    Args:
        folder: where they lie.
        names: of the files.
    """
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()[:12]


def hash_file(path: Path) -> str:
    """xxh3-128 of a file's content, in hexadecimal: guards against damage, as fast as the disk."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while data := file.read(1 << 24):
            digest.update(data)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(folder: Path, name: str, remedy: str = "set data.cache_dir to a folder on a local disk") -> Iterator[None]:
    """Hold a folder for one process. The kernel drops the lock of a process that dies, so none goes stale.

    Args:
        folder: exists.
        name: what the folder holds, for messages.
        remedy: what to do where its file system has no locks.

    Raises:
        UserError: the file system has no locks.
    """
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # waits where another process is making it; its work is used
        except OSError as error:
            raise UserError(f"{folder} cannot be locked for {name}: {error.strerror}; {remedy}") from error
        yield


def require_alone(file: IO[str] | int, busy: str) -> None:
    """Hold an open file or folder for this process, at once or not at all.

    The kernel drops the lock of a process that dies, so none goes stale. A file system without locks is passed over.

    Args:
        file: stays open as long as it is to be held.
        busy: what to tell where another process holds it.

    Raises:
        UserError: another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(busy) from None
    except OSError:
        pass
