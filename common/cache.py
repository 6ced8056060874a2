"""Folders that keep what was worked out once, shared by all processes of a machine."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError


def cache_root(cache_dir: str | None) -> Path:
    """`cache_dir`, else `$MOSGOAT_CACHE`, else `~/.cache/mosgoat`."""
    return Path(cache_dir or os.environ.get("MOSGOAT_CACHE") or "~/.cache/mosgoat").expanduser()


def fingerprint_of(*parts: Any) -> str:
    """SHA-256 of a JSON-serialisable description."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold a folder for one process. The kernel drops the lock of a process that dies, so none goes stale.

    Args:
        folder: exists.
        name: what the folder is a cache of, for messages.

    Raises:
        UserError: the file system has no locks.
    """
    with open(folder / "lock", "w") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(file, fcntl.LOCK_EX)  # another process is making it; its work is used
        except OSError as error:
            raise UserError(
                f"the cache of {name} cannot be locked in {folder}: {error.strerror}; "
                "set data.cache_dir to a folder on a local disk"
            ) from error
        yield
