"""Weights files: written whole, read without running code."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from common.weights import read_pickle, write_tensors


def test_tensors_come_back_and_nothing_is_left_beside_them(tmp_path: Path) -> None:
    value = torch.arange(6.0).view(2, 3)
    write_tensors(tmp_path / "w.safetensors", {"a": value.T, "b": value[0]})
    found = load_file(tmp_path / "w.safetensors")
    assert torch.equal(found["a"], value.T)
    assert torch.equal(found["b"], value[0])
    assert os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_weights_file_is_readable_for_whom_the_umask_says(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    write_tensors(file, {"a": torch.ones(2)})
    with pytest.raises((ValueError, AttributeError)):
        write_tensors(file, {"a": "no tensor"})  # type: ignore[dict-item]
    assert torch.equal(load_file(file)["a"], torch.ones(2))
    assert os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize("mapped", [False, True])
def test_a_state_dict_is_read_with_or_without_its_wrapper(tmp_path: Path, mapped: bool) -> None:
    for content in ({"a": torch.ones(2)}, {"state_dict": {"a": torch.ones(2)}}):
        torch.save(content, tmp_path / "w.bin")
        assert torch.equal(read_pickle(tmp_path / "w.bin", mapped=mapped)["a"], torch.ones(2))


def test_the_old_format_which_cannot_be_mapped_is_read_all_the_same(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "w.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(read_pickle(tmp_path / "w.bin", mapped=True)["a"], torch.ones(2))


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


def test_a_pickle_of_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.bin").write_bytes(pickle.dumps(_Runs()))
    with pytest.raises(UserError, match="pickled code is not run here"):
        read_pickle(tmp_path / "w.bin")
    assert not (tmp_path / "ran").exists()


def test_something_else_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "w.bin")
    with pytest.raises(UserError, match="holds no state dict"):
        read_pickle(tmp_path / "w.bin")
