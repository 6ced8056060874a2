"""The cache: whole or not there, made once, going on after a kill, and honest about damage and full disks."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from vit_classify.data import build, store
from vit_classify.data.build import Pass, cache_root
from vit_classify.data.sources import open_sources

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (build, store):
        monkeypatch.setattr(module, "CHUNK", 4)


@pytest.fixture
def pictures(make_folder: MakeFolder) -> Path:
    """22 pictures: five whole chunks and half a one."""
    return make_folder({"a": 12, "b": 10})


def make_pass(pictures: Path, root: Path, **changes: Any) -> Pass:
    settings = {"store_size": 24, "pixels": True, "strict": False, "num_workers": 0, **changes}
    return Pass(open_sources("mine", str(pictures), None).train, name="mine-train", root=root, **settings)


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    rows: list[int] = []
    original = build.load_picture

    def load(source: Any, row: int, store_size: int) -> np.ndarray:
        rows.append(row)
        return original(source, row, store_size)

    monkeypatch.setattr(build, "load_picture", load)
    return rows


def contents(task: Pass) -> list[bytes]:
    opened, index = task.open()
    return [opened.image(int(row)).tobytes() for row in index.readable()]


def test_cache_root_is_setting_then_environment_then_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSGOAT_CACHE", "/somewhere")
    assert cache_root("/here") == Path("/here")
    assert cache_root(None) == Path("/somewhere")
    monkeypatch.delenv("MOSGOAT_CACHE")
    assert cache_root(None) == Path.home() / ".cache" / "mosgoat"


def test_cache_holds_the_decoded_pictures_and_is_made_once(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_stored_pictures_cannot_be_written_to(pictures: Path, tmp_path: Path) -> None:
    opened, _ = make_pass(pictures, tmp_path).open()
    with pytest.raises(ValueError, match="read-only"):
        opened.image(0)[:] = 0


@pytest.mark.parametrize("workers", [1, 2])
def test_number_of_workers_changes_no_byte(pictures: Path, tmp_path: Path, workers: int) -> None:
    alone = make_pass(pictures, tmp_path / "alone")
    several = make_pass(pictures, tmp_path / "several", num_workers=workers)
    assert contents(alone) == contents(several)
    assert (alone.folder / "index.json").read_bytes() == (several.folder / "index.json").read_bytes()


def test_other_pictures_or_settings_have_another_cache(pictures: Path, tmp_path: Path) -> None:
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
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(make_pass(pictures, tmp_path / "whole"))
    task = make_pass(pictures, tmp_path / "resumed")
    interrupt(task, monkeypatch, after=3)
    decoded = count_decoded(monkeypatch)
    assert contents(make_pass(pictures, tmp_path / "resumed")) == expected
    assert decoded == list(range(12, 22))


def test_damaged_part_of_an_interrupted_pass_is_made_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


BUILDER = """
import sys, time
from pathlib import Path
from vit_classify.data import build, store
from vit_classify.data.sources import open_sources
build.CHUNK = store.CHUNK = 4
original = build.load_picture
def slowly(*arguments):
    time.sleep(float(sys.argv[3]))
    return original(*arguments)
build.load_picture = slowly
source = open_sources("mine", sys.argv[1], None).train
task = build.Pass(source, "mine-train", Path(sys.argv[2]), 24, pixels=True, strict=False, num_workers=0)
print("ready", flush=True)
task.open()
print("done", flush=True)
"""


def start_builder(pictures: Path, root: Path, seconds_a_picture: float) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILDER, str(pictures), str(root), str(seconds_a_picture)]
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
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(make_pass(pictures, tmp_path / "whole"))
    task = make_pass(pictures, tmp_path / "killed")
    journal = task.folder / "journal.jsonl"
    process = start_builder(pictures, tmp_path / "killed", 0.05)
    wait_for(lambda: journal.exists() and journal.read_text().count("\n") >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    decoded = count_decoded(monkeypatch)
    assert contents(task) == expected
    assert decoded[-1] == 21
    assert decoded[0] >= 8  # two chunks at least were taken over


@pytest.mark.slow
def test_two_processes_make_one_cache_once(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_pass(pictures, tmp_path)
    process = start_builder(pictures, tmp_path, 0.05)
    wait_for(lambda: (task.folder / "journal.jsonl").exists())
    decoded = count_decoded(monkeypatch)
    opened, _ = task.open()  # waits for the other process
    assert decoded == []
    assert opened.shape(21) == (24, 36)
    assert process.wait() == 0


def test_folder_without_locks_is_a_user_error(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="local disk"):
        make_pass(pictures, tmp_path).open()


# --- damage --------------------------------------------------------------------------------------------------------


def cut(folder: Path) -> None:
    with open(folder / "pixels.bin", "r+b") as file:
        file.truncate(1000)


def flip(folder: Path) -> None:
    with open(folder / "pixels.bin", "r+b") as file:
        file.seek(15_000)
        byte = file.read(1)[0]
        file.seek(15_000)
        file.write(bytes([byte ^ 1]))


def lose(folder: Path) -> None:
    (folder / "pixels.bin").unlink()


def edit_index(folder: Path) -> None:
    content = json.loads((folder / "index.json").read_text())
    content["shapes"][0] = [36, 24]
    (folder / "index.json").write_text(json.dumps(content))


def tear_index(folder: Path) -> None:
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text[: len(text) // 2])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "has 1,000 bytes instead of 57,024"),
        (flip, "damaged at pictures 4 to 7"),
        (lose, "cannot be read"),
        (edit_index, "index is damaged"),
        (tear_index, "index cannot be read"),
    ],
)
def test_damaged_cache_is_seen_and_made_anew(
    pictures: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    task = make_pass(pictures, tmp_path)
    expected = contents(task)
    damage(task.folder)
    assert reason in str(task.verify())
    with pytest.warns(UserWarning, match=reason):
        assert contents(task) == expected
    assert not isinstance(task.verify(), str)


def test_foreign_cache_is_not_taken(pictures: Path, tmp_path: Path) -> None:
    task = make_pass(pictures, tmp_path)
    expected = contents(task)
    other = make_pass(pictures, tmp_path / "other", store_size=20)
    other.open()
    for name in ("index.json", "pixels.bin"):
        (other.folder / name).replace(task.folder / name)
    assert task.verify() == "it belongs to other pictures or settings"
    with pytest.warns(UserWarning, match="other pictures"):
        assert contents(task) == expected


# --- unreadable pictures -------------------------------------------------------------------------------------------


def damage_pictures(pictures: Path) -> None:
    (pictures / "train" / "a" / "003.png").write_bytes(b"")
    file = pictures / "train" / "b" / "009.png"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("pixels", [True, False])
def test_unreadable_pictures_are_listed_with_reasons(pictures: Path, tmp_path: Path, pixels: bool) -> None:
    damage_pictures(pictures)
    task = make_pass(pictures, tmp_path, pixels=pixels)
    for _ in range(2):  # made, and read again
        _, index = task.open()
        assert [row for row, _ in index.skipped] == [3, 21]
        assert index.skipped[0][1] == "the file is empty"
        assert index.readable().tolist() == [row for row in range(22) if row not in (3, 21)]


@pytest.mark.parametrize("pixels", [True, False])
def test_strict_pass_stops_at_the_first_unreadable_picture(pictures: Path, tmp_path: Path, pixels: bool) -> None:
    damage_pictures(pictures)
    message = "train/a/003.png cannot be used: the file is empty; .*on_error=skip"
    with pytest.raises(UserError, match=message):
        make_pass(pictures, tmp_path, strict=True, pixels=pixels).open()
    make_pass(pictures, tmp_path, pixels=pixels).open()
    with pytest.raises(UserError, match=message):  # also when the cache is there already
        make_pass(pictures, tmp_path, strict=True, pixels=pixels).open()


def test_a_file_that_may_not_be_read_is_skipped_with_its_reason(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_pass(pictures, tmp_path)
    original = type(task.source).raw

    def raw(self: Any, row: int) -> bytes:
        if row == 2:
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(self, row)

    monkeypatch.setattr(type(task.source), "raw", raw)
    assert task.open()[1].skipped == [[2, "cannot be read: Permission denied"]]


def test_broken_link_is_skipped_with_its_reason(pictures: Path, tmp_path: Path) -> None:
    (pictures / "train" / "a" / "link.png").symlink_to("nowhere.png")
    _, index = make_pass(pictures, tmp_path).open()
    assert index.skipped == [[12, "cannot be read: No such file or directory"]]


def test_decoding_store_says_when_a_picture_has_changed(pictures: Path, tmp_path: Path) -> None:
    opened, _ = make_pass(pictures, tmp_path, pixels=False).open()
    (pictures / "train" / "a" / "000.png").write_bytes(b"")
    with pytest.raises(UserError, match="now cannot: the file is empty"):
        opened.image(0)


# --- full disks and wrong folders ----------------------------------------------------------------------------------


def test_no_space_left_says_how_much_is_needed_and_leaves_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_pass(pictures, tmp_path)
    original, written = build._append, []

    def append(journal: Any, entry: dict[str, Any]) -> None:
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(journal, entry)
        written.append(0)

    monkeypatch.setattr(build, "_append", append)
    with pytest.raises(UserError, match=r"needs about 57,024 bytes .* are free") as caught:
        task.open()
    assert str(task.folder) in str(caught.value)
    assert [path.name for path in task.folder.iterdir()] == ["lock"]


@pytest.mark.slow
def test_real_size_limit_is_a_clear_error_and_leaves_nothing(pictures: Path, tmp_path: Path) -> None:
    code = "import resource, sys\n" + BUILDER.replace(
        "task.open()",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))\n"
        "from common.errors import UserError\n"
        "try:\n    task.open()\nexcept UserError as error:\n    print(error)",
    )
    command = [sys.executable, "-c", code, str(pictures), str(tmp_path), "0"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "no space left: the cache of mine-train needs about 57,024 bytes" in out
    assert [path.name for path in make_pass(pictures, tmp_path).folder.iterdir()] == ["lock"]


def test_a_whole_cache_on_a_disk_that_cannot_be_written_to_is_used(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(make_pass(pictures, tmp_path))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert contents(make_pass(pictures, tmp_path)) == expected
    with pytest.raises(UserError, match=r"Read-only file system\); set data\.cache_dir"):
        make_pass(pictures, tmp_path, store_size=20).open()


def test_a_cache_folder_that_cannot_be_made_is_a_user_error(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"set data\.cache_dir"):
        make_pass(pictures, tmp_path / "file").open()


def test_a_sound_cache_warns_of_nothing(pictures: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_pass(pictures, tmp_path).open()
        make_pass(pictures, tmp_path).open()
