"""The table of methods, the errors of targets, and the papers' parameter counts."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from peft import LoraConfig, PeftConfig
from torch import nn

from common.adapters import (
    GOAT_TABLE_1_PARAMETERS,
    METHODS,
    MosgoatConfig,
    UpcycledConfig,
    attach,
    build_config,
    trainable_fraction,
)
from common.config import OPTIONS, AdapterConfig, Method
from common.errors import UserError

MakeMlp = Callable[[], nn.Module]
GOATS = [name for name in METHODS if name.startswith("goat")]


def test_the_table_holds_every_method_of_the_recipes() -> None:
    assert set(METHODS) == set(get_args(Method)) == set(OPTIONS)
    assert all(name == method.name for name, method in METHODS.items())
    assert [name for name, method in METHODS.items() if method.build is None] == ["full", "linear_probe"]


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.build])
def test_the_tables_flags_agree_with_the_configuration(name: str) -> None:
    method = METHODS[name]
    config = build_config(name, r=8, target_modules=["x"])
    assert method.ours == isinstance(config, MosgoatConfig | UpcycledConfig)
    assert method.routed == getattr(config, "routed", False)
    assert method.mergeable == (not method.routed)
    if method.ours:
        assert method.exportable == (not method.routed)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.build])
def test_every_option_of_a_method_reaches_its_configuration(name: str) -> None:
    given: dict[str, object] = {
        "alpha": 3.0,
        "dropout": 0.25,
        "scaling": 0.7,
        "mixer_init": "identity",
        "num_experts": 4,
        "top_k": 1,
        "rho": 3.5,
        "eta": 2.5,
        "balance_coef": 0.75,
        "init_r": 11,
        "tinit": 3,
        "tfinal": 4,
        "delta_t": 5,
        "beta1": 0.7,
        "beta2": 0.6,
        "orthogonal_coef": 0.3,
        "singular_coef": 0.2,
        "rank_dropout": 0.1,
        "module_dropout": 0.15,
        "decompose_both": True,
        "decompose_factor": 2,
        "depth": 1,
        "activation": "tanh",
        "num_directions": 5,
        "dash_steps": 7,
    }
    assert set(given) == frozenset.union(*OPTIONS.values()) - {"target_modules"}
    for key in OPTIONS[name] - {"target_modules"}:
        plain = {} if key != "alpha" or name not in GOATS else {"scaling": "alpha_over_r"}
        before = build_config(name, r=8, target_modules=["x"], **plain)
        after = build_config(name, r=8, target_modules=["x"], **plain, **{key: given[key]})
        assert settings(before) != settings(after), key


def settings(config: PeftConfig) -> dict[str, object]:
    return {**config.to_dict(), "schedule": getattr(config, "mosgoat_schedule", None)}


@pytest.mark.parametrize(("scaling", "factor"), [("alpha_over_r", 2), ("alpha_over_sqrt_r", 16 / 8**0.5), (3.5, 3.5)])
def test_pefts_lora_gets_the_stated_scaling(scaling: str | float, factor: float, mlp: MakeMlp) -> None:
    config = build_config("lora", r=8, alpha=16, target_modules=["fc1"], dropout=0.1, scaling=scaling)
    assert isinstance(config, LoraConfig)
    model = attach(mlp(), AdapterConfig(method="lora", scaling=scaling), ("fc1",))
    assert model.base_model.model.fc1.scaling["default"] == pytest.approx(factor)


def test_a_scaling_that_lora_lacks_is_an_error() -> None:
    with pytest.raises(UserError, match="scaling=theory is not known to PEFT's LoRA; use alpha_over_r"):
        build_config("lora", r=8, target_modules=["x"], scaling="theory")


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("moslara", {}, "method=moslara is unknown; did you mean moslora"),
        ("full", {}, "method=full is not an adapter"),
        ("moslora", {"num_experts": 4}, "num_experts has no effect with method=moslora"),
        ("goat", {"num_expert": 4}, "num_expert has no effect with method=goat; did you mean num_experts"),
        ("goat", {"num_experts": 3}, "r=8 is not a multiple of num_experts=3; use 3, 6, 9"),
    ],
)
def test_a_wrong_request_is_explained(method: str, overrides: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_config(method, r=8, target_modules=["x"], **overrides)


@pytest.mark.parametrize("method", ["lora", "moslora", "goat"])
def test_a_target_that_matches_nothing_lists_near_names(method: str, mlp: MakeMlp) -> None:
    with pytest.raises(UserError, match=r"'fc3' matches no layer; did you mean fc2 or fc1\?"):
        attach(mlp(), AdapterConfig(method=method, target_modules=["fc1", "fc3"]), ())
    with pytest.raises(UserError, match="'query' matches no layer; known: fc1, fc2"):
        attach(mlp(), AdapterConfig(method=method), ("query",))


@pytest.mark.parametrize("method", ["lora", "ts_mixing", "moslora", "molora", "goat"])
@pytest.mark.parametrize("shape", [(4, 40), (40, 4)])
def test_a_layer_smaller_than_the_rank_is_an_error(method: str, shape: tuple[int, int]) -> None:
    net = nn.Sequential()
    net.add_module("thin", nn.Linear(*shape))
    with pytest.raises(UserError, match=r"r=8 is larger than the smaller side of layer thin .*use r <= 4"):
        attach(net, AdapterConfig(method=method), ("thin",))


def test_a_layer_that_is_not_linear_is_an_error(mlp: MakeMlp) -> None:
    with pytest.raises(UserError, match="target act is a Tanh; adapters are for linear layers only"):
        attach(mlp(), AdapterConfig(method="moslora"), ("act",))


def test_the_packed_out_projection_of_multihead_attention_is_an_error() -> None:
    with pytest.raises(UserError, match="uses its weight without calling it, so the adapter would never run"):
        attach(nn.MultiheadAttention(16, 2), AdapterConfig(method="goat"), ("out_proj",))


def test_a_failed_attach_leaves_the_model_as_it_was(mlp: MakeMlp) -> None:
    model = mlp()
    with pytest.raises(UserError):
        attach(model, AdapterConfig(method="goat", target_modules=["fc1", "nothing"]), ())
    assert type(model.fc1) is nn.Linear
    assert model.fc1.weight.requires_grad


def vit_b_32() -> nn.Module:
    """The six adapted layers of each of the twelve blocks; the rest of the tower has no adapters."""
    block = dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), (768, 768))
    block |= {"c_fc": (768, 3072), "c_proj": (3072, 768)}
    with torch.device("meta"):
        return nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(*shape) for name, shape in block.items()}) for _ in range(12)
        )


@pytest.mark.parametrize(
    ("method", "r", "percent"),
    [
        ("lora", 8, "1.49"),
        ("lora", 16, "2.99"),
        ("lora", 32, "5.98"),
        ("molora", 8, "2.24"),
        ("goat", 8, "2.24"),
        ("goat_plus", 8, "2.24"),
    ],
)
def test_trained_shares_are_those_of_goats_table_1(method: str, r: int, percent: str) -> None:
    targets = ("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj")
    model = attach(vit_b_32(), AdapterConfig(method=method, r=r), targets)
    assert all(p.device.type == "meta" for p in model.parameters())
    count = trainable_fraction(model, GOAT_TABLE_1_PARAMETERS)
    assert count.percent == percent
    assert count.fraction == count.trainable / GOAT_TABLE_1_PARAMETERS


def test_without_a_stated_total_all_parameters_count(mlp: MakeMlp) -> None:
    model = attach(mlp(), AdapterConfig(method="moslora"), ("fc1",))
    count = trainable_fraction(model)
    assert count.trainable == 8 * 24 + 40 * 8 + 8 * 8
    assert count.total == sum(p.numel() for p in mlp().parameters()) + count.trainable
