"""What is saved opens elsewhere and is the same: in a fresh process, on a model without weights, for more training."""

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import nn

from common.adapters import MosgoatConfig, build_config
from common.adapters.layer import MosgoatLinear
from common.errors import UserError
from tests.common.adapters.contract import METHOD_NAMES, OURS, adapt, cases, same, train
from tests.common.adapters.tiny_models import MODELS, Mlp, tiny

# Every start value that is computed is one too many: it costs minutes on a real model and may differ.
_FRESH = """
import sys, torch, peft
from pathlib import Path
import common.adapters
from common.adapters import spec, start
from tests.common.adapters.contract import same
from tests.common.adapters.tiny_models import MODELS, tiny

def forbidden(*_, **__):
    raise AssertionError("a start value was computed while loading")

for module, name in ((start, "svd_segments"), (spec, "svd_start"), (torch.linalg, "eigh"), (torch.linalg, "svd")):
    assert hasattr(module, name)
    setattr(module, name, forbidden)
for case in sys.argv[2:]:
    name, _, method = case.partition(":")
    folder = Path(sys.argv[1], name, method)
    for low_cpu_mem_usage in (False, True) if name == "mlp" else (True,):
        model = peft.PeftModel.from_pretrained(tiny(name), folder, low_cpu_mem_usage=low_cpu_mem_usage)
        output = MODELS[name].output(model.eval())
        expected = torch.load(folder / "output.pt", weights_only=True)
        assert same(output, expected, method), (case, (output - expected).abs().max())
print("all equal")
"""


@pytest.mark.slow
def test_saved_adapters_open_in_a_fresh_process_without_any_decomposition(tmp_path: Path) -> None:
    names = []
    for case in cases():
        name, method = case.values
        model = adapt(name, method)
        model.save_pretrained(tmp_path / name / method)
        torch.save(MODELS[name].output(model).detach(), tmp_path / name / method / "output.pt")
        names.append(f"{name}:{method}")
    run = subprocess.run(
        [sys.executable, "-c", _FRESH, str(tmp_path), *names], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "missing adapter keys" not in run.stderr
    assert run.stdout.strip() == "all equal"


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_training_goes_on_from_a_loaded_adapter(method: str, tmp_path: Path) -> None:
    model = adapt("mlp", method)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny("mlp"), tmp_path, is_trainable=True)
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert {key for key, p in loaded.named_parameters() if p.requires_grad} == trained
    train(model, "mlp")
    train(loaded, "mlp")
    assert same(MODELS["mlp"].output(loaded.eval()), MODELS["mlp"].output(model.eval()), method)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_module_trained_whole_is_saved_with_the_adapter(method: str, tmp_path: Path) -> None:
    model = adapt("mlp", method, target_modules=["fc1"], modules_to_save=["fc2"])
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny("mlp"), tmp_path)
    expected = MODELS["mlp"].output(model)
    assert same(MODELS["mlp"].output(loaded.eval()), expected, method)
    with model.disable_adapter():
        assert torch.equal(MODELS["mlp"].output(model), MODELS["mlp"].output(tiny("mlp")))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_file_holds_the_adapter_and_nothing_of_the_base(method: str, tmp_path: Path) -> None:
    model = adapt("llava" if method in ("goat", "moslora") else "mlp", method)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved
    assert not [key for key in saved if "base_layer" in key or key.endswith(".bias")]
    if method in OURS:
        kind = json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"]
        assert all(f".{kind.lower()}_" in key for key in saved)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json", ".md"}


def test_a_saved_configuration_without_its_weights_is_an_error_not_a_wrong_start(tmp_path: Path) -> None:
    adapt("mlp", "goat").save_pretrained(tmp_path)
    config = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(config, MosgoatConfig)
    x = MODELS["mlp"].batch()["x"]
    with pytest.raises(UserError, match=r"layer fc1: adapter 'default' lacks the values of mosgoat_A"):
        peft.get_peft_model(Mlp(), config)(x)
    config.weights_saved = False
    assert peft.get_peft_model(Mlp(), config)(x).isfinite().all()


@pytest.mark.parametrize("method", ["moslora", "goat_plus", "hydralora"])
def test_the_language_model_and_the_vision_tower_may_have_their_own_rank_and_strength(
    method: str, tmp_path: Path
) -> None:
    patterns: dict = {"rank_pattern": {r".*vision_tower.*": 8}, "alpha_pattern": {r".*vision_tower.*": 4.0}}
    if method == "moslora":
        patterns["mixer_pattern"] = {r".*vision_tower.*": "butterfly"}
    model = adapt("llava", method, r=16, alpha=32.0, scaling="alpha_over_r", **patterns)
    found: dict[str, set] = {}
    for key, layer in model.named_modules():
        if isinstance(layer, MosgoatLinear):
            part = "vision" if "vision_tower" in key else "language"
            spec = layer.specs["default"]
            found.setdefault(part, set()).add((spec.r, layer.scaling["default"], spec.mixer))
    mixers = {"moslora": ("butterfly", "dense"), "goat_plus": ("topk", "topk"), "hydralora": ("shared_a", "shared_a")}
    vision, language = mixers[method]
    assert found == {"vision": {(8, 0.5, vision)}, "language": {(16, 2.0, language)}}
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny("llava"), tmp_path)
    assert torch.equal(MODELS["llava"].output(loaded.eval()), MODELS["llava"].output(model))


@pytest.mark.parametrize("pattern", ["rank_pattern", "alpha_pattern", "mixer_pattern"])
def test_a_pattern_that_matches_nothing_is_an_error_that_lists_near_names(pattern: str) -> None:
    value = "identity" if pattern == "mixer_pattern" else 8
    with pytest.raises(UserError, match=rf"{pattern}: 'vision_towr' matches no module; did you mean vision_tower\?"):
        adapt("llava", "moslora", **{pattern: {"vision_towr": value}})


@pytest.mark.parametrize("merge", [True, False])
def test_a_module_that_is_saved_whole_survives_merging_and_unloading(merge: bool) -> None:
    torch.manual_seed(0)
    base = nn.ModuleDict({"body": nn.Linear(16, 16), "head": nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))})
    model = get_peft_model(base, build_config("moslora", r=8, target_modules=["body"], modules_to_save=["head"]))
    x = torch.randn(3, 16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    inside = model.get_base_model()
    expected, head = inside["body"](x), inside["head"](x)
    plain = inside["body"].base_layer(x)
    merged = model.merge_and_unload() if merge else model.unload()
    assert type(merged["head"]) is nn.Sequential
    torch.testing.assert_close(merged["head"](x), head, rtol=0, atol=0)
    torch.testing.assert_close(merged["body"](x), expected if merge else plain, rtol=1e-5, atol=1e-6)
