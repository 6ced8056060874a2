"""Counts against closed forms, saved files and the pipeline's own tower."""

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from common.adapters import METHODS, attach, trainable_fraction
from common.config import AdapterConfig
from common.counting import MODELS, Architecture, count
from common.errors import UserError
from vit_classify.attention import split_attention
from vit_classify.config import TARGET_MODULES

R, E, T = 8, 8, 8  # rank, experts, directions of LoRA-Dash: the defaults
LAYERS = 2
# (in, out) of the adapted layers of one block of the small LLaMA: q, k, v, up, down
BLOCK = [(32, 32), (32, 16), (32, 16), (32, 48), (48, 32)]


def closed_form(method: str, n: int, m: int) -> int:
    """Trained parameters of one layer with n inputs and m outputs, from the method's equation."""
    d, lora = R // E, R * (n + m)
    if method.startswith("goat") and method != "goat_single":
        return lora + E * n
    return {
        "dora": lora + m,
        "adalora": 12 * (n + m + 1),
        "loha": 2 * lora,
        "neat": 2 * R * m,  # A (out, r) and B (r, out) about W0ᵀ
        "moslora": lora + R * R,
        "flora": lora + R * R,
        "kasa": lora + R,
        "lora_dash": lora + T,
        "lora_fa": R * m,
        "lora_fb": R * n,
        "molora": lora + E * n,
        "hydralora": d * n + R * m + E * n,
        "adamole": lora + E * n + n + 1,
        "full_moe": E * n * m + E * n,
    }.get(method, lora)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("full", "linear_probe", "lokr")])
def test_trained_parameters_are_the_closed_form(method: str, llama: Architecture) -> None:
    counted = count(llama, AdapterConfig(method=method, r=R), with_flops=False)  # type: ignore[arg-type]
    assert counted.trainable == LAYERS * sum(closed_form(method, n, m) for n, m in BLOCK)
    assert counted.optimizer_bytes == 8 * counted.trainable
    assert sum(group.trainable for group in counted.groups) == counted.trainable
    assert sorted((group.in_features, group.out_features) for group in counted.groups) == sorted(BLOCK)
    assert {group.layers for group in counted.groups} == {LAYERS}


def test_full_trains_and_saves_every_weight_once(llama: Architecture) -> None:
    counted = count(llama, AdapterConfig(method="full"), with_flops=False)
    assert counted.trainable == counted.base
    assert counted.percent == "100.00"
    assert counted.adapter_bytes == 4 * counted.base


def open_clip_tower() -> nn.Module:
    with torch.device("meta"):
        clip = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32-quickgelu"))
        return split_attention(clip.get_submodule("visual"))


@pytest.mark.parametrize("method", ["full", "lora", "moslora", "goat", "hydralora", "lokr", "full_moe"])
def test_clip_vit_b_32_counts_as_the_pipelines_own_tower(method: str) -> None:
    adapter = AdapterConfig(method=method, r=R)  # type: ignore[arg-type]
    tower = open_clip_tower()
    base = sum(parameter.numel() for parameter in tower.parameters())
    if method != "full":
        with torch.device("meta"):
            tower = attach(tower, adapter, TARGET_MODULES)
    counted = count(MODELS["clip-vit-b-32"], adapter, with_flops=False)
    assert counted.base == base
    assert counted.trainable == trainable_fraction(tower).trainable


@pytest.mark.parametrize("method", ["pissa", "kasa", "lora_dash", "goat", "goat_plus", "goat_random"])
def test_nothing_is_decomposed_or_given_memory(
    method: str, llama: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a decomposition was computed")

    for name in ("eigh", "svd", "qr"):
        monkeypatch.setattr(torch.linalg, name, forbidden)
    made: list[torch.Tensor] = []
    register = nn.Module.register_parameter

    def note(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            made.append(parameter)
        register(self, name, parameter)

    monkeypatch.setattr(nn.Module, "register_parameter", note)
    count(llama, AdapterConfig(method=method, r=R), with_flops=False)  # type: ignore[arg-type]
    assert made
    assert {parameter.device.type for parameter in made} == {"meta"}


@pytest.mark.parametrize("method", ["lora", "moslora", "dora", "goat", "goat_plus", "kasa", "full_moe"])
def test_saved_bytes_are_those_of_the_saved_file(method: str, llama: Architecture, tmp_path: Path) -> None:
    adapter = AdapterConfig(method=method, r=R)  # type: ignore[arg-type]
    model = attach(llama.build(), adapter, llama.targets)
    model.save_pretrained(tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors").values()
    saved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert count(llama, adapter, with_flops=False).adapter_bytes == saved


def test_optimizer_bytes_are_adamws_two_moments(llama: Architecture) -> None:
    adapter = AdapterConfig(method="moslora", r=R)
    model = attach(llama.build(), adapter, llama.targets)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    states = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    expected = sum(value.numel() * value.element_size() for value in states)
    assert count(llama, adapter, with_flops=False).optimizer_bytes == expected


def test_named_targets_replace_the_papers_own(llama: Architecture) -> None:
    adapter = AdapterConfig(method="lora", r=2, target_modules=["o_proj", "layers.0.mlp.gate_proj"])
    counted = count(llama, adapter, with_flops=False)
    groups = {group.target: (group.layers, group.trainable) for group in counted.groups}
    assert groups == {"o_proj": (LAYERS, LAYERS * 2 * 64), "layers.0.mlp.gate_proj": (1, 2 * 80)}


def test_a_target_that_matches_nothing_names_near_layers(llama: Architecture) -> None:
    with pytest.raises(UserError, match=r"--targets: 'q_prj' matches no linear layer of llama; did you mean q_proj"):
        count(llama, AdapterConfig(target_modules=["q_proj", "q_prj"]))


def test_a_rank_beyond_a_layers_side_names_the_layer(llama: Architecture) -> None:
    with pytest.raises(UserError, match=r"r=17 is larger than the smaller side of layer .*k_proj \(32 -> 16\)"):
        count(llama, AdapterConfig(r=17))


def test_a_linear_probe_is_not_a_matter_of_the_model(llama: Architecture) -> None:
    with pytest.raises(UserError, match="head depends on the data's classes"):
        count(llama, AdapterConfig(method="linear_probe"))
