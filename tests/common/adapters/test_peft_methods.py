"""PEFT's own methods as the table sets them up, each against its paper's equation written out here."""

import math

import peft
import pytest
import torch
from torch import nn

from common.adapters import build_config
from common.errors import UserError
from tests.common.adapters.tiny_models import shake


def adapted(
    method: str, in_features: int = 24, out_features: int = 40, **overrides: object
) -> tuple[nn.Linear, nn.Module]:
    """A linear layer and its adapted form, away from its start."""
    torch.manual_seed(5)
    layer = nn.Linear(in_features, out_features)
    config = build_config(method, r=8, alpha=12, target_modules=["0"], **overrides)
    model = peft.get_peft_model(nn.Sequential(layer), config).eval()
    shake(model)
    return layer, model.base_model.model[0]


def update(layer: nn.Linear, adapted_layer: nn.Module) -> torch.Tensor:
    """ΔW (out, in) in float64, read off the outputs for the unit vectors."""
    units = torch.eye(layer.in_features)
    return (adapted_layer(units) - layer(units)).T.double()


def weight(parameter: nn.Module | torch.Tensor) -> torch.Tensor:
    found = parameter.weight if isinstance(parameter, nn.Module) else parameter
    return found.detach().double()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    # float32 products of these sizes agree with float64 to about 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


def test_rslora_divides_alpha_by_the_root_of_the_rank() -> None:
    layer, found = adapted("rslora")
    a, b = weight(found.lora_A["default"]), weight(found.lora_B["default"])
    close(update(layer, found), 12 / math.sqrt(8) * b @ a)


def test_dora_gives_every_row_of_the_weight_its_own_trained_norm() -> None:
    layer, found = adapted("dora")
    a, b = weight(found.lora_A["default"]), weight(found.lora_B["default"])
    magnitude = weight(found.lora_magnitude_vector["default"].weight)
    turned = layer.weight.detach().double() + 12 / 8 * b @ a
    merged = layer.weight.detach().double() + update(layer, found)
    close(merged, magnitude[:, None] * turned / turned.norm(dim=1, keepdim=True))
    close(merged.norm(dim=1), magnitude.abs())


def test_dora_starts_with_the_norms_of_the_weight() -> None:
    torch.manual_seed(5)
    layer = nn.Linear(24, 40)
    model = peft.get_peft_model(nn.Sequential(layer), build_config("dora", r=8, target_modules=["0"]))
    magnitude = model.base_model.model[0].lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitude, layer.weight.norm(dim=1))


def test_adalora_is_a_scaled_singular_value_decomposition() -> None:
    layer, found = adapted("adalora", init_r=10)
    a, b, e = (weight(getattr(found, f"lora_{name}")["default"]) for name in "ABE")
    assert (a.shape, b.shape, e.shape) == ((10, 24), (40, 10), (10, 1))
    close(update(layer, found), 12 / (10 + 1e-5) * b @ torch.diag(e[:, 0]) @ a)


def test_adaloras_rank_at_the_start_exceeds_the_one_at_the_end() -> None:
    assert build_config("adalora", r=8, target_modules=["x"]).init_r == 12
    assert build_config("adalora", r=1, target_modules=["x"]).init_r == 2
    with pytest.raises(UserError, match="init_r=8 must exceed r=8"):
        build_config("adalora", r=8, init_r=8, target_modules=["x"])


def test_loha_multiplies_two_low_rank_products_entry_by_entry() -> None:
    layer, found = adapted("loha")
    one = weight(found.hada_w1_a["default"]) @ weight(found.hada_w1_b["default"])
    two = weight(found.hada_w2_a["default"]) @ weight(found.hada_w2_b["default"])
    close(update(layer, found), 12 / 8 * one * two)


def kronecker(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The Kronecker product written out: block (i, j) is left[i, j] · right."""
    return torch.cat([torch.cat([entry * right for entry in row], dim=1) for row in left])


@pytest.mark.parametrize(("overrides", "low_rank"), [({}, False), ({"decompose_factor": 2}, True)])
def test_lokr_is_a_kronecker_product(overrides: dict, low_rank: bool) -> None:
    layer, found = adapted("lokr", in_features=60, out_features=80, **overrides)
    left = weight(found.lokr_w1["default"])
    assert ("default" in found.lokr_w2_a) == low_rank
    if low_rank:
        right = weight(found.lokr_w2_a["default"]) @ weight(found.lokr_w2_b["default"])
        assert left.shape == (2, 2)
    else:
        right = weight(found.lokr_w2["default"])
    close(update(layer, found), 12 / 8 * kronecker(left, right))


@pytest.mark.parametrize("depth", [0, 1])
def test_neat_is_a_small_network_of_the_weight(depth: int) -> None:
    layer, found = adapted("neat", scaling=0.5, depth=depth, activation="tanh")
    w = layer.weight.detach().double()
    hidden = torch.tanh(w.T @ weight(found.peanut_A["default"]).T)  # (in, r)
    for encoder, decoder in zip(found.peanut_encoders["default"], found.peanut_decoders["default"], strict=True):
        inner = torch.tanh(hidden @ weight(encoder).T)
        hidden = hidden + torch.tanh(inner @ weight(decoder).T)
    assert len(found.peanut_encoders["default"]) == depth
    close(update(layer, found), 0.5 * (hidden @ weight(found.peanut_B["default"]).T).T)


def test_neat_takes_no_rule_for_its_scaling() -> None:
    with pytest.raises(UserError, match="scaling=alpha_over_r is not for neat"):
        build_config("neat", r=8, target_modules=["x"], scaling="alpha_over_r")


@pytest.mark.parametrize("method", ["rslora", "dora", "adalora", "loha", "lokr", "neat"])
def test_the_start_changes_nothing(method: str) -> None:
    torch.manual_seed(5)
    layer = nn.Linear(24, 40)
    x = torch.randn(7, 24)
    expected = layer(x)
    model = peft.get_peft_model(nn.Sequential(layer), build_config(method, r=8, target_modules=["0"]))
    # DoRA divides by the norms it multiplies with, which rounds
    torch.testing.assert_close(model.eval()(x), expected, rtol=0, atol=1e-6)
