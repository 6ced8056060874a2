"""The cache is made once, by any number of workers and processes, and goes on after a kill."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.cache import cache_root
from common.errors import UserError
from vit_classify.data import build, store
from vit_classify.data.build import Pass

MakePass = Callable[..., Pass]
Contents = Callable[[Pass], list[bytes]]


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    rows: list[int] = []
    original = build.load_picture

    def load(source: Any, row: int, store_size: int) -> np.ndarray:
        rows.append(row)
        return original(source, row, store_size)

    monkeypatch.setattr(build, "load_picture", load)
    return rows


def test_cache_root_is_setting_then_environment_then_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSGOAT_CACHE", "/somewhere")
    assert cache_root("/here") == Path("/here")
    assert cache_root(None) == Path("/somewhere")
    monkeypatch.delenv("MOSGOAT_CACHE")
    assert cache_root(None) == Path.home() / ".cache" / "mosgoat"


def test_cache_holds_the_decoded_pictures_and_is_made_once(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pass: MakePass
) -> None:
    decoded = count_decoded(monkeypatch)
    task = make_pass(pictures, tmp_path)
    first, index = task.open()
    assert decoded == list(range(22))
    for row in range(22):
        expected = store.load_picture(task.source, row, 24)
        np.testing.assert_array_equal(first.image(row), expected)
        assert first.shape(row) == expected.shape[:2] == (24, 36)
    assert index.skipped == []
    assert sorted(path.name for path in task.folder.iterdir()) == ["index.json", "lock", "pixels.bin"]
    make_pass(pictures, tmp_path).open()
    assert len(decoded) == 22


def test_stored_pictures_cannot_be_written_to(pictures: Path, tmp_path: Path, make_pass: MakePass) -> None:
    opened, _ = make_pass(pictures, tmp_path).open()
    with pytest.raises(ValueError, match="read-only"):
        opened.image(0)[:] = 0


@pytest.mark.parametrize("workers", [1, 2])
def test_number_of_workers_changes_no_byte(
    pictures: Path, tmp_path: Path, workers: int, make_pass: MakePass, contents: Contents
) -> None:
    alone = make_pass(pictures, tmp_path / "alone")
    several = make_pass(pictures, tmp_path / "several", num_workers=workers)
    assert contents(alone) == contents(several)
    assert (alone.folder / "index.json").read_bytes() == (several.folder / "index.json").read_bytes()


def test_other_pictures_or_settings_have_another_cache(pictures: Path, tmp_path: Path, make_pass: MakePass) -> None:
    tasks = [make_pass(pictures, tmp_path), make_pass(pictures, tmp_path, store_size=20)]
    tasks.append(make_pass(pictures, tmp_path, pixels=False))
    os.utime(pictures / "train" / "a" / "000.png", ns=(1, 1))
    tasks.append(make_pass(pictures, tmp_path))
    assert len({task.folder for task in tasks}) == 4


# --- interruption --------------------------------------------------------------------------------------------------


def interrupt(task: Pass, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Die like a killed process, after so many journalled chunks, in the middle of the next write."""
    original, written = build._append, []

    def append(journal: Any, entry: dict[str, Any]) -> None:
        if "hash" in entry and len(written) == after:
            journal.write('{"shapes": [[1')  # a torn line
            journal.flush()
            raise KeyboardInterrupt
        original(journal, entry)
        written.extend([0] * ("hash" in entry))

    with monkeypatch.context() as patch:
        patch.setattr(build, "_append", append)
        with pytest.raises(KeyboardInterrupt):
            task.open()
    assert not (task.folder / "index.json").exists()


def test_interrupted_pass_goes_on_where_it_stopped(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pass: MakePass, contents: Contents
) -> None:
    expected = contents(make_pass(pictures, tmp_path / "whole"))
    task = make_pass(pictures, tmp_path / "resumed")
    interrupt(task, monkeypatch, after=3)
    decoded = count_decoded(monkeypatch)
    assert contents(make_pass(pictures, tmp_path / "resumed")) == expected
    assert decoded == list(range(12, 22))


def test_damaged_part_of_an_interrupted_pass_is_made_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pass: MakePass, contents: Contents
) -> None:
    expected = contents(make_pass(pictures, tmp_path / "whole"))
    task = make_pass(pictures, tmp_path / "resumed")
    interrupt(task, monkeypatch, after=3)
    partial = task.folder / "pixels.partial"
    data = bytearray(partial.read_bytes())
    data[5 * 24 * 36 * 3] ^= 1  # in the second chunk
    partial.write_bytes(data)
    decoded = count_decoded(monkeypatch)
    assert contents(make_pass(pictures, tmp_path / "resumed")) == expected
    assert decoded == list(range(4, 22))


def start_builder(builder: str, pictures: Path, root: Path, seconds_a_picture: float) -> subprocess.Popen:
    command = [sys.executable, "-c", builder, str(pictures), str(root), str(seconds_a_picture)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited 30 s in vain")


@pytest.mark.slow
def test_killed_process_leaves_no_lock_and_its_work_is_used(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_pass: MakePass,
    contents: Contents,
    builder: str,
) -> None:
    expected = contents(make_pass(pictures, tmp_path / "whole"))
    task = make_pass(pictures, tmp_path / "killed")
    journal = task.folder / "journal.jsonl"
    process = start_builder(builder, pictures, tmp_path / "killed", 0.05)
    wait_for(lambda: journal.exists() and journal.read_text().count("\n") >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    decoded = count_decoded(monkeypatch)
    assert contents(task) == expected
    assert decoded[-1] == 21
    assert decoded[0] >= 8  # two chunks at least were taken over


@pytest.mark.slow
def test_two_processes_make_one_cache_once(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pass: MakePass, builder: str
) -> None:
    task = make_pass(pictures, tmp_path)
    process = start_builder(builder, pictures, tmp_path, 0.05)
    wait_for(lambda: (task.folder / "journal.jsonl").exists())
    decoded = count_decoded(monkeypatch)
    opened, _ = task.open()  # waits for the other process
    assert decoded == []
    assert opened.shape(21) == (24, 36)
    assert process.wait() == 0


def test_folder_without_locks_is_a_user_error(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pass: MakePass
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="local disk"):
        make_pass(pictures, tmp_path).open()
