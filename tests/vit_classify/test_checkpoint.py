"""A weights file is read whole, strictly, and without running code."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from common.errors import UserError
from vit_classify.checkpoint import WEIGHTS_FILE, load_strictly, read_tensors


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def message(state: dict[str, torch.Tensor]) -> str:
    with pytest.raises(UserError) as caught:
        load_strictly(model(), state, Path("weights.safetensors"))
    return str(caught.value)


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_a_truncated_file_is_refused(tiny_base: Path, tmp_path: Path, kept: int) -> None:
    whole = (tiny_base / WEIGHTS_FILE).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:kept])
    with pytest.raises(UserError, match=r"cut\.safetensors .* is damaged or incomplete"):
        read_tensors(tmp_path / "cut.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights file at .*absent"):
        read_tensors(tmp_path / "absent.safetensors")


class _Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"weight": _Evil(str(tmp_path / "ran"))}, tmp_path / "evil.bin")
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        read_tensors(tmp_path / "evil.bin")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"<html>404</html>"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.bin").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        read_tensors(tmp_path / "page.bin")


def test_a_pickle_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "log.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        read_tensors(tmp_path / "log.pt")


def test_missing_unexpected_and_misshapen_keys_are_all_named() -> None:
    state = model().state_dict()
    state["1.weight"] = torch.zeros(5, 5)
    state["foreign"] = state.pop("0.bias")
    text = message(state)
    assert "1 missing: 0.bias" in text
    assert "1 unexpected: foreign" in text
    assert "1.weight (5, 5), the model has (2, 4)" in text


def test_a_long_list_of_keys_is_cut() -> None:
    assert "6 unexpected: a0, a1, a2, a3 and 2 more" in message(
        {**model().state_dict(), **{f"a{i}": torch.zeros(1) for i in range(6)}}
    )


def test_weights_that_are_not_finite_are_refused() -> None:
    state = model().state_dict()
    state["0.weight"][1, 1] = float("nan")
    assert "not finite: 0.weight" in message(state)


def test_a_refused_file_changes_nothing() -> None:
    module = model()
    before = module[0].weight.clone()
    with pytest.raises(UserError):
        load_strictly(module, {"0.weight": torch.zeros(4, 3)}, Path("x"))
    assert torch.equal(module[0].weight, before)


def test_names_of_transformers_are_recognised() -> None:
    assert "take the open_clip file" in message({"vision_model.embeddings.class_embedding": torch.zeros(3)})


def test_sizes_that_openai_stores_as_tensors_are_passed_over(tmp_path: Path) -> None:
    stored, loaded = model(), model()
    save_file({**stored.state_dict(), "input_resolution": torch.tensor(224)}, tmp_path / "w.safetensors")
    load_strictly(loaded, load_file(tmp_path / "w.safetensors"), tmp_path)
    assert all(torch.equal(value, stored.state_dict()[key]) for key, value in loaded.state_dict().items())
