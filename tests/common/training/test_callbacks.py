"""Trackers on a disk that is full."""

from __future__ import annotations

import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from common.training.callbacks import tracker_callbacks


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[threading.ExceptHookArgs]:
    """What would be printed as the traceback of a thread."""
    found: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", found.append)
    return found


def write(writer: Any) -> None:
    for step in range(1000):
        writer.add_scalar("loss", 0.5, step)
        writer.flush()


def fail(error: Exception) -> None:
    raise error


def test_a_full_disk_is_told_by_the_main_thread_alone(tmp_path: Path, told: list[threading.ExceptHookArgs]) -> None:
    (callback,) = tracker_callbacks(["tensorboard"], tmp_path, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(callback.tb_writer)  # type: ignore[attr-defined]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told == []


def test_errors_of_other_threads_are_printed_as_ever(tmp_path: Path, told: list[threading.ExceptHookArgs]) -> None:
    for name in ("first", "second"):  # every run of a sweep opens one
        tracker_callbacks(["tensorboard"], tmp_path / name, 0)
    error = OSError("of another thread")
    thread = threading.Thread(target=fail, args=[error])
    thread.start()
    thread.join()
    assert [each.exc_value for each in told] == [error]
