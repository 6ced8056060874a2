"""One training at a time in a run directory."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from common.errors import UserError
from common.files import TEMPORARY

_LOCK = f".in-use{TEMPORARY}"
# POSIX locks end with the process, however it ends, and are not passed on to the workers it starts.
_held: dict[Path, IO[bytes]] = {}


def lock(path: Path) -> None:
    """Keep other processes from training into the directory `path`, until `unlock` or the end of this process.

    Raises:
        UserError: another process is training into it.
    """
    path = path.resolve()
    if path in _held:
        return
    file = (path / _LOCK).open("wb")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise UserError(
            f"output={path} is in use: another process is training into it. Give another output, or wait for it to end"
        ) from error
    except OSError:  # a file system without locks
        pass
    _held[path] = file


def unlock(path: Path) -> None:
    """Let other processes have a run directory."""
    file = _held.pop(path.resolve(), None)
    if file is not None:
        Path(file.name).unlink(missing_ok=True)
        file.close()
