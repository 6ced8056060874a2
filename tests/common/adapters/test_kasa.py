"""KaSA in our tuner: the truncated weight, the diagonal mixer and the two further losses."""

import numpy as np
import peft
import pytest
import torch
from torch import nn

from common.adapters import auxiliary_loss, build_config
from common.adapters.layer import MosgoatLinear
from common.errors import UserError
from tests.common.adapters.tiny_models import Mlp, shake


def adapted(moved: bool = True, r: int = 4, **overrides: object) -> nn.Module:
    torch.manual_seed(1)
    model = peft.get_peft_model(Mlp(), build_config("kasa", r=r, alpha=6, target_modules=["fc1", "fc2"], **overrides))
    if moved:
        shake(model)
    return model.eval()


def layers(model: nn.Module) -> list[MosgoatLinear]:
    return [layer for layer in model.modules() if isinstance(layer, MosgoatLinear)]


def numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def merged(layer: MosgoatLinear) -> np.ndarray:
    return numpy(layer(torch.eye(layer.in_features)).T - layer.base_layer.bias[:, None])


def test_the_start_is_the_weight_without_its_smallest_singular_triplets() -> None:
    for layer in layers(adapted(moved=False)):
        u, sigma, vt = np.linalg.svd(numpy(layer.base_layer.weight), full_matrices=False)
        expected = u[:, :-4] @ np.diag(sigma[:-4]) @ vt[:-4]
        np.testing.assert_allclose(merged(layer), expected, atol=2e-6)  # float32 products


def test_the_update_has_a_trained_diagonal_between_its_factors() -> None:
    for layer, start in zip(layers(adapted()), layers(adapted(moved=False)), strict=True):
        a, b, d = (numpy(getattr(layer, f"mosgoat_{name}")["default"]) for name in ("A", "B", "mixer"))
        assert d.shape == (4,)
        np.testing.assert_allclose(merged(layer) - merged(start), 6 / 4 * b @ np.diag(d) @ a, atol=4e-6)


def test_the_losses_are_those_of_the_papers_equations_9_to_11() -> None:
    model = adapted(singular_coef=0.02, orthogonal_coef=0.3)
    expected = 0.0
    for layer in layers(model):
        a, b, d = (numpy(getattr(layer, f"mosgoat_{name}")["default"]) for name in ("A", "B", "mixer"))
        expected += 0.02 * np.square(d).sum()
        expected += 0.3 * sum(np.linalg.norm(gram - np.eye(4)) for gram in (b.T @ b, a @ a.T))
    found = auxiliary_loss(model)
    assert found.item() == pytest.approx(expected, rel=1e-6)
    found.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_default_weights_of_its_losses_are_those_of_the_released_recipes() -> None:
    config = build_config("kasa", r=8, target_modules=["x"])
    assert (config.singular_coef, config.orthogonal_coef) == (1e-4, 1e-3)
    assert auxiliary_loss(adapted(singular_coef=0.0, orthogonal_coef=0.0)).item() == 0


def test_a_rank_that_would_take_the_whole_weight_is_an_error() -> None:
    with pytest.raises(UserError, match=r"r=20 triplets are to be taken from a layer 40 -> 20.*use r < 20"):
        adapted(r=20)
