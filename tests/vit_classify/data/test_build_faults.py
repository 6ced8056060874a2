"""What the cache does about damage, unreadable pictures, full disks and folders it cannot write to."""

import errno
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from vit_classify.data import build
from vit_classify.data.build import Pass

MakePass = Callable[..., Pass]
Contents = Callable[[Pass], list[bytes]]


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
    pictures: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str, make_pass: MakePass, contents: Contents
) -> None:
    task = make_pass(pictures, tmp_path)
    expected = contents(task)
    damage(task.folder)
    assert reason in str(task.verify())
    with pytest.warns(UserWarning, match=reason):
        assert contents(task) == expected
    assert not isinstance(task.verify(), str)


def test_foreign_cache_is_not_taken(pictures: Path, tmp_path: Path, make_pass: MakePass, contents: Contents) -> None:
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
def test_unreadable_pictures_are_listed_with_reasons(
    pictures: Path, tmp_path: Path, pixels: bool, make_pass: MakePass
) -> None:
    damage_pictures(pictures)
    task = make_pass(pictures, tmp_path, pixels=pixels)
    for _ in range(2):  # made, and read again
        _, index = task.open()
        assert [row for row, _ in index.skipped] == [3, 21]
        assert index.skipped[0][1] == "the file is empty"
        assert index.readable().tolist() == [row for row in range(22) if row not in (3, 21)]


@pytest.mark.parametrize("pixels", [True, False])
def test_strict_pass_stops_at_the_first_unreadable_picture(
    pictures: Path, tmp_path: Path, pixels: bool, make_pass: MakePass
) -> None:
    damage_pictures(pictures)
    message = "train/a/003.png cannot be used: the file is empty; .*on_error=skip"
    with pytest.raises(UserError, match=message):
        make_pass(pictures, tmp_path, strict=True, pixels=pixels).open()
    make_pass(pictures, tmp_path, pixels=pixels).open()
    with pytest.raises(UserError, match=message):  # also when the cache is there already
        make_pass(pictures, tmp_path, strict=True, pixels=pixels).open()


def test_a_file_that_may_not_be_read_is_skipped_with_its_reason(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pass: MakePass
) -> None:
    task = make_pass(pictures, tmp_path)
    original = type(task.source).raw

    def raw(self: Any, row: int) -> bytes:
        if row == 2:
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(type(task.source), "raw", raw)
        for _ in range(2):
            assert task.open()[1].skipped == [[2, "cannot be read: Permission denied"]]
    # It may be read now: no trace of that in the file's size or time, and the cache must not keep it out.
    with pytest.warns(UserWarning, match="can be read now"):
        assert task.open()[1].skipped == []


def test_broken_link_is_skipped_with_its_reason(pictures: Path, tmp_path: Path, make_pass: MakePass) -> None:
    (pictures / "train" / "a" / "link.png").symlink_to("nowhere.png")
    _, index = make_pass(pictures, tmp_path).open()
    assert index.skipped == [[12, "cannot be read: No such file or directory"]]


def test_decoding_store_says_when_a_picture_has_changed(pictures: Path, tmp_path: Path, make_pass: MakePass) -> None:
    opened, _ = make_pass(pictures, tmp_path, pixels=False).open()
    (pictures / "train" / "a" / "000.png").write_bytes(b"")
    with pytest.raises(UserError, match="now cannot: the file is empty"):
        opened.image(0)


# --- full disks and wrong folders ----------------------------------------------------------------------------------


def test_no_space_left_says_how_much_is_needed_and_leaves_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pass: MakePass
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
def test_real_size_limit_is_a_clear_error_and_leaves_nothing(
    pictures: Path, tmp_path: Path, make_pass: MakePass, builder: str
) -> None:
    code = "import resource, sys\n" + builder.replace(
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
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pass: MakePass, contents: Contents
) -> None:
    expected = contents(make_pass(pictures, tmp_path))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert contents(make_pass(pictures, tmp_path)) == expected
    with pytest.raises(UserError, match=r"Read-only file system\); set data\.cache_dir"):
        make_pass(pictures, tmp_path, store_size=20).open()


def test_a_cache_folder_that_cannot_be_made_is_a_user_error(
    pictures: Path, tmp_path: Path, make_pass: MakePass
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"set data\.cache_dir"):
        make_pass(pictures, tmp_path / "file").open()


def test_a_sound_cache_warns_of_nothing(pictures: Path, tmp_path: Path, make_pass: MakePass) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_pass(pictures, tmp_path).open()
        make_pass(pictures, tmp_path).open()
