"""Cached files are made once however many processes ask for them, and a killed one leaves nothing behind."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from dreambooth.data import store

# A forked process needs no second import of torch. It must compute next to nothing: PyTorch's threads are not forked
# with it, and it would wait for them for ever.
FORK = multiprocessing.get_context("fork")
KEYS = [f"key{i}" for i in range(4)]


def make_slowly(folder: Path, seconds: float) -> None:
    def make(keys: list[str]) -> None:
        for key in keys:
            with open(folder.parent / "made", "a") as log:
                log.write(f"{key}\n")
            time.sleep(seconds)
            store.write(folder, key, {"x": torch.arange(3)})

    store.make_missing(folder, KEYS, make, "tests")
    assert all(store.read(folder, key)["x"].tolist() == [0, 1, 2] for key in KEYS)


def made(folder: Path) -> list[str]:
    log = folder.parent / "made"
    return log.read_text().split() if log.exists() else []


def test_processes_that_start_together_make_everything_once(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    several = [FORK.Process(target=make_slowly, args=(folder, 0.1), daemon=True) for _ in range(3)]
    for process in several:
        process.start()
    for process in several:
        process.join(60)
    assert [process.exitcode for process in several] == [0, 0, 0]
    assert made(folder) == KEYS


def test_a_killed_process_leaves_no_lock_and_what_it_had_made(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    process = FORK.Process(target=make_slowly, args=(folder, 0.2), daemon=True)
    process.start()
    while len(made(folder)) < 3:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (folder / f".key3.safetensors.{process.pid}.tmp").write_bytes(b"half")
    make_slowly(folder, 0)
    assert made(folder) == [*KEYS[:3], *KEYS[2:]]
    assert not list(folder.glob(".*"))


def read_then_empty_the_file(folder: Path, row: int | None) -> None:
    found = store.read(folder, "large", row)["x"]
    store.file_of(folder, "large").write_bytes(b"")
    assert found.numpy().max() > 0


@pytest.mark.parametrize("row", [None, 2])
def test_what_is_read_outlives_its_file(tmp_path: Path, row: int | None) -> None:
    # in a process of its own: touching what is mapped from a file that is cut short ends the process
    store.write(tmp_path, "large", {"x": torch.arange(8000).view(4, -1)})
    process = FORK.Process(target=read_then_empty_the_file, args=(tmp_path, row), daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == 0
