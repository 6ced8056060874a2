"""What went wrong when something was written, in words that a user can act on."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import safetensors

from common.errors import UserError

# torch.save reports a full disk as a RuntimeError of its zip writer.
_WRITER_FAILED = ("PytorchStreamWriter", "unexpected pos", "iostream error", "file write failed")


def is_write_error(error: BaseException) -> bool:
    """Whether `error` says that a file could not be written, in the words of any library that writes ours."""
    if isinstance(error, OSError | safetensors.SafetensorError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WRITER_FAILED)


def is_full(error: BaseException) -> bool:
    """Whether `error` says that the disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_denied(error: BaseException) -> bool:
    """Whether `error` says that nothing may be written there: no permission, or something else in the way."""
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
        return True
    return isinstance(error, OSError) and error.errno == errno.EROFS


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, which need not be there yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def writing_is_explained(directory: Path) -> Iterator[None]:
    """Turn an error of the disk while something is written into `directory` into a `UserError`.

    Raises:
        UserError: no space, no permission, or a file that cannot be written for another reason.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_write_error(error):
            raise
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory} is a file; give the path of a folder") from error
        raise UserError(
            f"{directory} could not be written: {explain_write_error(error, directory)}; mend that and start the same "
            "command again"
        ) from error


def explain_write_error(error: BaseException, directory: Path) -> str:
    """What went wrong with the disk, in words that a user can act on."""
    free = free_bytes(directory) / 2**20
    full = is_full(error) or (free < 1 and not isinstance(error, OSError))  # safetensors and torch do not say which
    return f"{'no space left: ' if full else ''}{error} ({free:,.0f} MiB free in {directory})"
