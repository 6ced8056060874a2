"""Singular values of updates against those of the update formed in float64, and mixers."""

from collections.abc import Callable

import peft
import pytest
import torch
from torch import Tensor, nn

from common.adapters import METHODS, build_config
from common.adapters.spectrum import dense_mixers, product_spectrum, update_spectra

Adapted = Callable[..., peft.PeftModel]
MERGED = [name for name, method in METHODS.items() if method.exportable and name != "dora"]
RTOL = 1e-5  # float32 triangular factors, relative to the largest singular value


def assert_spectrum(found: Tensor, update: Tensor) -> None:
    expected = torch.linalg.svdvals(update.double())[: len(found)]
    assert (found.double() - expected).abs().max() <= RTOL * expected[0]
    assert torch.linalg.matrix_rank(update.double(), rtol=RTOL) <= len(found)


@pytest.mark.parametrize("method", MERGED)
def test_singular_values_are_those_of_the_update(method: str, adapted: Adapted, x: Tensor) -> None:
    model = adapted(method).eval()
    spectra = update_spectra(model)
    assert list(spectra) == ["fc1", "fc2"]
    for name, found in spectra.items():
        layer = model.base_model.model.get_submodule(name)
        eye = torch.eye(layer.base_layer.in_features)
        with torch.no_grad():
            update = (layer(eye) - layer.base_layer(eye)).T  # what the layer really adds
        assert_spectrum(found, update)


@pytest.mark.parametrize("method", ["goat", "goat_plus", "molora", "hydralora", "adamole"])
def test_of_a_routed_method_they_are_those_of_the_mean_over_the_experts(method: str, adapted: Adapted) -> None:
    model = adapted(method, num_experts=4)
    for name, found in update_spectra(model).items():
        layer = model.base_model.model.get_submodule(name)
        spec, a, b = layer.specs["default"], layer.mosgoat_A["default"].double(), layer.mosgoat_B["default"].double()
        scale = torch.full((4,), spec.scaling, dtype=torch.float64)
        if "default" in layer.mosgoat_segment_scale:
            scale = scale * layer.mosgoat_segment_scale["default"].double()
        downs = [a] * 4 if method == "hydralora" else a.chunk(4)
        mean = sum(s * up @ down for s, up, down in zip(scale, b.chunk(4, dim=1), downs, strict=True)) / 4
        if "default" in layer.mosgoat_A0:
            starts = zip(
                scale, layer.mosgoat_B0["default"].chunk(4, 1), layer.mosgoat_A0["default"].chunk(4), strict=True
            )
            mean = mean - sum(s * up.double() @ down.double() for s, up, down in starts) / 4
        assert_spectrum(found, mean.detach())


def test_at_its_start_goat_has_learned_nothing(adapted: Adapted) -> None:
    for values in update_spectra(adapted("goat", moved=False)).values():
        assert values.max() < 1e-5


def test_a_layer_narrower_than_the_update_has_as_many_values_as_its_side() -> None:
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(12, 7, generator=generator), torch.randn(9, 12, generator=generator)
    found = product_spectrum(down, up)
    assert len(found) == 7
    assert_spectrum(found, up @ down)


def test_an_adapter_without_narrow_factors_is_left_out(mlp: Callable[[], nn.Module]) -> None:
    model = peft.get_peft_model(mlp(), peft.LoHaConfig(r=4, target_modules=["fc1"]))
    assert update_spectra(model) == {}


def test_only_trained_dense_mixers_are_given(adapted: Adapted) -> None:
    model = adapted("moslora")
    found = dense_mixers(model)
    assert torch.equal(found["fc1"], model.base_model.model.fc1.mosgoat_mixer["default"].detach())
    assert dense_mixers(adapted("ts_mixing")) == dense_mixers(adapted("lora")) == dense_mixers(adapted("goat")) == {}


def test_two_active_adapters_are_told_apart(mlp: Callable[[], nn.Module]) -> None:
    model = peft.get_peft_model(mlp(), build_config("moslora", r=4, target_modules=["fc1"]))
    model.add_adapter("other", build_config("moslora", r=2, target_modules=["fc1"]))
    model.base_model.set_adapter(["default", "other"])
    assert {name: len(values) for name, values in update_spectra(model).items()} == {
        "fc1 (default)": 4,
        "fc1 (other)": 2,
    }
