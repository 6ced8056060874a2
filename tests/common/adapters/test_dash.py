"""LoRA-Dash: which directions it chooses, what it adds, and that it stays a plain LoRA for other tools."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch import nn

from common.adapters import AdapterSchedule, build_config, export_lora
from common.adapters.dash import launch_step
from common.adapters.layer import MosgoatLinear
from common.errors import UserError
from tests.common.adapters.tiny_models import Mlp, shake


def adapted(**overrides: object) -> nn.Module:
    torch.manual_seed(1)
    config = build_config("lora_dash", r=4, alpha=6, target_modules=["fc1", "fc2"], **overrides)
    model = peft.get_peft_model(Mlp(), config).eval()
    shake(model)
    return model


def launched(**overrides: object) -> nn.Module:
    """A model after its launch, its strengths moved away from zero."""
    model = adapted(**overrides)
    AdapterSchedule(model, 200).after_step(100)
    shake(model)
    return model


def layers(model: nn.Module) -> list[MosgoatLinear]:
    return [layer for layer in model.modules() if isinstance(layer, MosgoatLinear)]


def numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def test_the_chosen_directions_are_those_of_the_largest_change_rates() -> None:
    model = adapted(num_directions=3)
    AdapterSchedule(model, 200).after_step(100)
    for layer in layers(model):
        u, sigma, vt = np.linalg.svd(numpy(layer.base_layer.weight), full_matrices=False)
        update = 6 / 4 * numpy(layer.mosgoat_B["default"]) @ numpy(layer.mosgoat_A["default"])
        rates = [abs(u[:, i] @ update @ vt[i]) / (sigma[i] + 1e-6) for i in range(len(sigma))]
        chosen = np.argsort(rates)[::-1][:3]
        # a pair of singular vectors has no sign, their product has
        expected = np.stack([np.outer(u[:, i], vt[i]) for i in chosen])
        found = np.einsum("ot,ti->toi", numpy(layer.mosgoat_U["default"]), numpy(layer.mosgoat_V["default"]))
        np.testing.assert_allclose(found, expected, atol=1e-5)  # vectors are kept in float32


def test_the_update_is_that_of_lora_and_of_the_directions() -> None:
    for layer in layers(launched()):
        a, b = numpy(layer.mosgoat_A["default"]), numpy(layer.mosgoat_B["default"])
        u, v = numpy(layer.mosgoat_U["default"]), numpy(layer.mosgoat_V["default"])
        strength = numpy(layer.mosgoat_sigma["default"])
        assert len(strength) == 8
        expected = 6 / 4 * b @ a + sum(strength[i] * np.outer(u[:, i], v[i]) for i in range(8))
        units = torch.eye(layer.in_features)
        found = numpy((layer(units) - layer.base_layer(units)).T)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)  # float32 products


def test_it_trains_the_strengths_and_never_the_directions() -> None:
    model = launched()
    model.train()(torch.randn(3, 24)).square().sum().backward()
    for layer in layers(model):
        assert layer.mosgoat_sigma["default"].grad.all()
        assert not layer.mosgoat_U["default"].requires_grad
    trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"mosgoat_A", "mosgoat_B", "mosgoat_sigma"}


def test_the_launch_itself_changes_no_output() -> None:
    model = adapted()
    x = torch.randn(3, 24)
    with torch.no_grad():
        for layer in layers(model):
            layer.mosgoat_sigma["default"].zero_()
    before = model(x)
    AdapterSchedule(model, 200).after_step(100)
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-6)  # zeros are added in another order


def test_it_exports_as_a_lora_of_rank_r_plus_t(tmp_path: Path) -> None:
    model = launched(num_directions=5)
    x = torch.randn(3, 24)
    expected = model(x)
    export_lora(model, tmp_path)
    torch.manual_seed(1)
    plain = peft.PeftModel.from_pretrained(Mlp(), tmp_path).eval()
    assert plain.base_model.model.fc1.lora_A["default"].weight.shape[0] == 4 + 5
    torch.testing.assert_close(plain(x), expected, rtol=0, atol=1e-6)


def test_the_optimizer_meets_the_directions_when_they_are_launched() -> None:
    model = adapted()
    schedule = AdapterSchedule(model, 6)  # launches after step 3
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(1, 5):
        model(torch.randn(3, 24)).square().sum().backward()
        schedule.before_step(step)
        optimizer.step()
        schedule.after_step(step)
        optimizer.zero_grad()
        for layer in layers(model):
            state = optimizer.state.get(layer.mosgoat_sigma["default"])
            assert (state is None) == (step <= 3)
    assert all(optimizer.state[layer.mosgoat_sigma["default"]]["step"] == 1 for layer in layers(model))


def test_half_the_strength_is_half_the_update() -> None:
    (layer, *_) = layers(launched())
    x = torch.randn(3, 24)
    whole = layer(x) - layer.base_layer(x)
    layer.set_scale("default", 0.5)
    torch.testing.assert_close(layer(x) - layer.base_layer(x), whole / 2, rtol=0, atol=1e-6)


def test_when_it_launches() -> None:
    assert [launch_step(None, steps) for steps in (10_000, 200, 60, 3, 1)] == [100, 100, 30, 1, 1]
    assert launch_step(7, 8) == 7
    with pytest.raises(UserError, match="dash_steps=8 must be less than the 8 steps"):
        launch_step(8, 8)


def test_more_directions_than_a_layer_has_are_an_error() -> None:
    with pytest.raises(
        UserError, match="num_directions=21 is more than the 20 singular directions of a layer 40 -> 20"
    ):
        adapted(num_directions=21)
