"""Adapters of ours loaded by stock PEFT calls: what does not fit is an error that names it, never a warning."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from common.adapters import MosgoatConfig, UpcycledConfig, attach, build_config
from common.config import AdapterConfig
from common.errors import UserError
from tests.common.adapters.tiny_models import shake

METHODS = ["moslora", "goat", "adamole", "lora_dash", "full_moe"]


class Base(nn.Module):
    def __init__(self, first: str = "a", second: str = "b") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names = first, second
        self.add_module(first, nn.Linear(16, 24))
        self.add_module(second, nn.Linear(24, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = map(self.get_submodule, self.names)
        return second(first(x).relu())


def saved(method: str, folder: Path) -> PeftModel:
    model = get_peft_model(Base(), build_config(method, r=8, target_modules=["a", "b"]))
    shake(model)
    model.save_pretrained(str(folder))
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_that_a_file_lacks_is_named(method: str, tmp_path: Path) -> None:
    model = saved(method, tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    for key in [key for key in state if ".a." in key]:
        save_file({k: v for k, v in state.items() if k != key}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(UserError, match=key):
            PeftModel.from_pretrained(Base(), str(tmp_path))
    save_file(state, tmp_path / "adapter_model.safetensors")
    x = torch.randn(3, 16)
    assert torch.equal(PeftModel.from_pretrained(Base(), str(tmp_path)).eval()(x), model(x))


@pytest.mark.parametrize("method", METHODS)
def test_layers_that_a_base_has_not_are_named(method: str, tmp_path: Path) -> None:
    saved(method, tmp_path)
    with pytest.raises(UserError, match=r"nothing takes base_model\.model\.b\."):
        PeftModel.from_pretrained(Base("a", "other"), str(tmp_path))


@pytest.mark.parametrize("method", METHODS)
def test_two_adapters_load_one_after_the_other(method: str, tmp_path: Path) -> None:
    model, x = saved(method, tmp_path), torch.randn(3, 16)
    loaded = PeftModel.from_pretrained(Base(), str(tmp_path)).eval()
    loaded.load_adapter(str(tmp_path), adapter_name="two")
    loaded.set_adapter("two")
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("method", ["moslora", "full_moe"])
def test_number_that_became_a_text_is_named(method: str, tmp_path: Path) -> None:
    saved(method, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_experts": "8"}))
    with pytest.raises(UserError, match="num_experts='8' must be a whole number"):
        PeftModel.from_pretrained(Base(), str(tmp_path))


@pytest.mark.parametrize("kind", [MosgoatConfig, UpcycledConfig])
@pytest.mark.parametrize("targets", [None, []])
def test_configuration_without_targets_says_so(kind: Any, targets: Any) -> None:
    with pytest.raises(UserError, match="names no layer"):
        get_peft_model(Base(), kind(target_modules=targets))


@pytest.mark.parametrize(
    "value",
    [{"rho": math.nan}, {"eta": math.inf}, {"balance_coef": math.nan}, {"alpha": math.nan}, {"scaling": math.inf}],
)
def test_numbers_that_are_none_are_refused(value: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(value))}=(nan|inf) must be"):
        MosgoatConfig(target_modules=["a"], **value)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["moslora", "full_moe"])
def test_strength_of_an_adapter_can_be_changed_and_restored(method: str) -> None:
    torch.manual_seed(0)
    model = get_peft_model(Base(), build_config(method, r=8, target_modules=["a"]))
    shake(model)
    layer, x = model.eval().get_submodule("base_model.model.a"), torch.randn(5, 16)
    trained = layer(x) - layer.base_layer(x)

    def strength() -> float:
        update = layer(x) - layer.base_layer(x)
        return ((update * trained).sum() / trained.square().sum()).item()

    layer.set_scale("default", 0.5)
    assert strength() == pytest.approx(0.5, rel=1e-4)  # float32
    layer.scale_layer(4)
    assert strength() == pytest.approx(2, rel=1e-4)
    layer.unscale_layer(4)
    assert strength() == pytest.approx(0.5, rel=1e-4)
    layer.scale_layer(0)
    layer.unscale_layer(0)  # nothing is left to divide: the trained strength
    assert strength() == pytest.approx(1, rel=1e-4)


def test_upcycled_layer_has_a_shape_without_data() -> None:
    model = get_peft_model(Base(), build_config("full_moe", r=8, target_modules=["a", "b"])).to("meta")
    assert model(torch.empty(5, 16, device="meta")).shape == (5, 16)


def test_start_rank_of_adalora_that_no_layer_has_is_refused_before_it_fills_the_memory() -> None:
    config = AdapterConfig(method="adalora", r=8, init_r=100_000)
    with pytest.raises(UserError, match=r"init_r=100000 is larger .* use init_r <= 16"):
        attach(Base(), config, ["a", "b"])
