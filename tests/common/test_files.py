"""Files and checkpoints that are whole or absent."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.files import append_json_line, atomic_write, cut_json_lines, read_json_lines, write_json
from common.training import checkpoint as checkpoints


def save(directory: Path, step: int) -> Path:
    partial = checkpoints.begin(directory, step)
    (partial / "weights").write_bytes(b"x" * 100)
    return checkpoints.finish(partial, {"step": step, "world_size": 1, "config_hash": "h"})


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "results.json"
    write_json(target, {"a": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(target, "new")
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_nan_is_never_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "results.json", {"accuracy": float("nan")})


def test_metrics_of_an_undone_future_and_a_cut_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_json_line(path, {"step": step})
    with path.open("a") as handle:
        handle.write('{"step": 4, "lo')
    assert [line["step"] for line in read_json_lines(path)] == [1, 2, 3]
    cut_json_lines(path, 2)
    append_json_line(path, {"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_the_newest_checkpoint_is_the_newest_whole_one(tmp_path: Path) -> None:
    assert checkpoints.newest_checkpoint(tmp_path / "absent") is None
    for step in (4, 12, 8):
        save(tmp_path, step)
    assert checkpoints.newest_checkpoint(tmp_path) == tmp_path / "step-00000012"
    (tmp_path / "step-00000012" / "weights").write_bytes(b"short")  # a copy that was cut
    checkpoints.begin(tmp_path, 16)  # killed while it was written
    (tmp_path / "step-00000099").mkdir()
    (tmp_path / "notes.txt").write_text("of the user")
    newest = checkpoints.newest_checkpoint(tmp_path)
    assert newest == tmp_path / "step-00000008"
    assert checkpoints.step_of(newest) == 8


def test_lines_that_are_no_json_do_not_stop_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo{"step": 2}\n\x00\xff\n[3]\n{"step": 3}\n')
    cut_json_lines(path, 9)
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_a_checkpoint_with_a_changed_byte_is_passed_over(tmp_path: Path) -> None:
    for step in (4, 8):
        save(tmp_path, step)
    assert checkpoints.newest_sound_checkpoint(tmp_path) == (tmp_path / "step-00000008", [])
    (tmp_path / "step-00000008" / "weights").write_bytes(b"x" * 99 + b"y")
    assert checkpoints.is_whole(tmp_path / "step-00000008")  # as far as its sizes tell
    assert checkpoints.newest_sound_checkpoint(tmp_path) == (
        tmp_path / "step-00000004",
        [tmp_path / "step-00000008"],
    )


def test_a_checkpoint_that_was_cut_is_written_again(tmp_path: Path) -> None:
    (save(tmp_path, 4) / "weights").write_bytes(b"short")
    assert checkpoints.is_whole(save(tmp_path, 4))


def test_rotation_keeps_the_newest_whole_checkpoints(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    (tmp_path / "step-00000004" / "weights").unlink()
    checkpoints.rotate(tmp_path, keep=2)
    assert [path.name for path in checkpoints.whole_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    checkpoints.rotate(tmp_path, keep=0)
    assert checkpoints.newest_checkpoint(tmp_path) == tmp_path / "step-00000003"


def test_a_line_behind_one_that_was_cut_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    append_json_line(file, {"n": 1})
    with file.open("a") as opened:
        opened.write('{"n": 2, "cu')
    append_json_line(file, {"n": 3})
    assert read_json_lines(file) == [{"n": 1}, {"n": 3}]
    assert file.read_bytes().endswith(b'"cu\n{"n": 3}\n')


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_a_checkpoints_files_can_be_read_by_whom_the_umask_lets(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        partial = checkpoints.begin(tmp_path / "checkpoints", 1)
        save_file({"weight": torch.zeros(2)}, partial / "trained.safetensors")
        whole = checkpoints.finish(partial, {"step": 1, "world_size": 1, "config_hash": "h"})
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in whole.iterdir()} == {
        "trained.safetensors": mode,
        "manifest.json": mode,
    }
