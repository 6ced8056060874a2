"""Export to a plain LoRA and back through stock PEFT."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from common.adapters import METHODS, MosgoatConfig, build_config, export_lora
from common.errors import UserError

Adapted = Callable[..., peft.PeftModel]
MakeMlp = Callable[[], nn.Module]


def assert_same_in_stock_peft(model: peft.PeftModel, base: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    x = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    expected = model.eval()(x)
    export_lora(model, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    before = base(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of missing and of unknown keys
        loaded = peft.PeftModel.from_pretrained(base, folder)
    difference = (loaded.eval()(x) - expected).abs().max()
    assert difference <= 1e-6 * expected.abs().max() + 1e-6  # one float32 product in another order
    assert (expected - before).abs().max() > 0.01
    weights = load_file(folder / "adapter_model.safetensors")
    kinds = {name.rpartition(".lora_")[2] for name in weights if "lora_" in name}
    assert kinds - {"magnitude_vector"} == {"A.weight", "B.weight"}  # DoRA's
    return weights


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.exportable])
def test_stock_peft_gives_the_same_output(method: str, adapted: Adapted, mlp: MakeMlp, tmp_path: Path) -> None:
    weights = assert_same_in_stock_peft(adapted(method, alpha=12.0, dropout=0.1), mlp(), tmp_path)
    # a start that is taken off again is a second branch; Dash has 8 directions, AdaLoRA half as many ranks to spend
    rank = {"goat_single": 16, "pissa": 16, "milora": 16, "kasa": 16, "lora_dash": 16, "adalora": 12}.get(method, 8)
    assert weights["base_model.model.fc1.lora_A.weight"].shape == (rank, 24)


def test_patterns_and_scalings_that_differ_by_layer_survive(mlp: MakeMlp, tmp_path: Path) -> None:
    config = build_config("moslora", r=8, target_modules=["fc1", "fc2"], scaling="theory", rank_pattern={"fc2": 4})
    model = peft.get_peft_model(mlp(), config)
    for layer in (model.base_model.model.fc1, model.base_model.model.fc2):
        nn.init.normal_(layer.mosgoat_B["default"])
    assert_same_in_stock_peft(model, mlp(), tmp_path)


def test_layers_whose_names_end_alike_keep_their_own_scaling(tmp_path: Path) -> None:
    def base() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(24, 40), nn.Sequential(nn.Linear(40, 40)), nn.Linear(40, 20))

    # the scaling of layer 0 differs from that of 1.0 and 2, and "0" is also the end of "1.0"
    model = peft.get_peft_model(base(), build_config("moslora", r=8, target_modules=["0", "2"], scaling="theory"))
    for layer in (model.base_model.model[0], model.base_model.model[1][0], model.base_model.model[2]):
        nn.init.normal_(layer.mosgoat_B["default"])
    assert_same_in_stock_peft(model, base(), tmp_path)


def test_a_residual_becomes_a_lora_of_twice_the_rank(mlp: MakeMlp, tmp_path: Path) -> None:
    config = MosgoatConfig(
        mixer="identity", init="spread", num_experts=4, segment_scaling=True, target_modules=["fc1", "fc2"]
    )
    model = peft.get_peft_model(mlp(), config)
    with torch.no_grad():
        model.base_model.model.fc1.mosgoat_A["default"].mul_(1.5)
    weights = assert_same_in_stock_peft(model, mlp(), tmp_path)
    assert weights["base_model.model.fc1.lora_A.weight"].shape == (16, 24)


def test_modules_to_save_go_along(mlp: MakeMlp, tmp_path: Path) -> None:
    config = build_config("moslora", r=8, target_modules=["fc1"], modules_to_save=["fc2"])
    model = peft.get_peft_model(mlp(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert_same_in_stock_peft(model, mlp(), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == ["fc2"]


def test_the_exported_strength_is_the_trained_one(adapted: Adapted, mlp: MakeMlp, tmp_path: Path) -> None:
    model = adapted("moslora").eval()
    x = torch.randn(2, 24)
    expected = model(x)
    model.base_model.model.fc1.set_scale("default", 0.1)
    export_lora(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(mlp(), tmp_path).eval()
    torch.testing.assert_close(loaded(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.routed])
def test_a_routed_method_is_refused_with_the_reason(method: str, adapted: Adapted, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"routes every token.*exported as a plain LoRA; keep it as an adapter"):
        export_lora(adapted(method), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_kind_is_refused(mlp: MakeMlp, tmp_path: Path) -> None:
    model = peft.get_peft_model(mlp(), peft.IA3Config(target_modules=["fc1"], feedforward_modules=["fc1"]))
    with pytest.raises(UserError, match="which is no LoRA"):
        export_lora(model, tmp_path)
