"""Files that are either whole or absent, whatever happens to the process or the machine."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"


def fsync_path(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """`fsync_path` for every file and folder in `folder`, and for `folder` itself."""
    for parent, _, names in os.walk(folder):
        for name in names:
            fsync_path(Path(parent, name))
        fsync_path(Path(parent))


def share_as_usual(path: Path) -> None:
    """Give a file, or every file in a folder, the permissions of a file that was just opened for writing.

    safetensors writes into a file of its own that only its owner may read (0600) and renames that; what a run holds is
    for a group to read, if the umask says so.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file() and not file.is_symlink():
            with contextlib.suppress(OSError):  # not every file system knows permissions
                file.chmod(file.stat().st_mode | (0o666 & ~umask))


def atomic_write(path: Path, content: str | bytes) -> None:
    """Put `content` at `path` so that a reader sees the old file or the new one, never a part.

    Raises:
        OSError: the disk is full or the place cannot be written; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are refused with ValueError."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_json_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add one line of JSON to a file with a single write, so that a crash can only cut the last line."""
    line = (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line  # a line that was cut must not take this one with it
        if os.write(handle, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(handle)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; one that a crash or a full disk has cut is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def cut_json_lines(path: Path, last_step: int) -> None:
    """Keep the lines whose `step` is at most `last_step`; the others belong to a future that was undone."""
    if path.exists():
        kept = [line for line in read_json_lines(path) if line.get("step", 0) <= last_step]
        atomic_write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def resolved(folder: str | None) -> str | None:
    """A folder made absolute, which need not be there yet; nothing as it is."""
    return folder and str(Path(folder).expanduser().resolve())


def absolute(name: str | None) -> str | None:
    """A path that exists made absolute; any other name (a Hub id, a tag), or nothing, as it is."""
    if not name or not Path(name).expanduser().exists():
        return name
    return str(Path(name).expanduser().resolve())
