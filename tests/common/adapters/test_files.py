from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from common.adapters import build_config
from common.adapters.files import WEIGHTS_FILE, load_adapter, save_adapter
from common.errors import UserError


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


def adapted() -> PeftModel:
    model = get_peft_model(base(), build_config("moslora", r=2, target_modules=["0", "2"]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += parameter.requires_grad * 0.1
    return model


def test_adapter_comes_back_as_it_was(tmp_path: Path) -> None:
    model, x = adapted(), torch.randn(3, 8)
    save_adapter(model, tmp_path / "adapter")
    assert torch.equal(load_adapter(base(), tmp_path / "adapter")(x), model(x))


def test_saving_replaces_what_was_there_and_leaves_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old.bin").write_text("old")
    save_adapter(adapted(), tmp_path / "adapter")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["adapter", "adapter_config.json", WEIGHTS_FILE]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("absent", "is missing"),
        ("truncated", "damaged or incomplete"),
        ("key missing", "lacks"),
        ("key too many", "unexpected"),
        ("shape", "does not fit the base"),
        ("nan", "not finite"),
    ],
)
def test_damaged_adapter_is_refused(tmp_path: Path, damage: str, message: str) -> None:
    save_adapter(adapted(), tmp_path / "adapter")
    file = tmp_path / "adapter" / WEIGHTS_FILE
    state = load_file(file)
    name = sorted(state)[0]
    if damage == "absent":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "key missing":
        save_file({key: value for key, value in state.items() if key != name}, file)
    else:
        changed = {"key too many": "other", "shape": name, "nan": name}[damage]
        value = {"key too many": torch.zeros(2), "shape": torch.zeros(3, 3), "nan": state[name] * torch.nan}[damage]
        save_file({**state, changed: value}, file)
    with pytest.raises(UserError, match=message):
        load_adapter(base(), tmp_path / "adapter")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"peft_type": "FOO"}', '{"peft_type": ["LORA"]}', None])
def test_configuration_that_is_none_is_named(tmp_path: Path, content: str | None) -> None:
    save_adapter(adapted(), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"adapter_config\.json(:| is missing| cannot be read as JSON)"):
        load_adapter(base(), tmp_path / "adapter")
