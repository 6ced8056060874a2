"""The products with x: dropout that is drawn again in the backward, in every dtype."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from common.adapters import MosgoatConfig
from common.adapters.layer import MosgoatLinear
from common.adapters.project import keep_probability, kept_entries, project

MakeLayer = Callable[..., MosgoatLinear]
NAMES = ("x", "w1", "w2", "w3")


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_dropout_keeps_the_stated_share_of_entries_independently(p: float) -> None:
    kept = kept_entries(torch.empty(1000, 1001), p, seed=11)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert keep_probability(p) == pytest.approx(1 - p, abs=1e-5)
    five_sigma = 5 * (p * (1 - p) / kept.numel()) ** 0.5
    assert kept.mean().item() == pytest.approx(1 - p, abs=five_sigma)
    flat = kept.flatten()
    for lag in (1, 2, 3, 4, 1001):  # neighbours share a 64-bit draw
        product = (flat[lag:] * flat[:-lag]).mean().item()
        assert product == pytest.approx((1 - p) ** 2, abs=2 * five_sigma)


def test_one_seed_gives_one_mask_in_every_dtype_and_another_seed_another() -> None:
    first = kept_entries(torch.empty(33, 7), 0.3, seed=5)
    assert torch.equal(first, kept_entries(torch.empty(33, 7, dtype=torch.bfloat16), 0.3, seed=5).float())
    assert not torch.equal(first, kept_entries(torch.empty(33, 7), 0.3, seed=6))


def test_the_mask_in_the_backward_is_the_mask_of_the_forward() -> None:
    """With W = I the output shows the mask, and so must the gradient of x."""
    x = torch.ones(50, 30, requires_grad=True)
    y, _, _ = project(x, torch.eye(30), None, None, 0.4, torch.float32)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert 0 < (y == 0).float().mean() < 1


def test_the_weight_gradient_sees_the_dropped_input() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(50, 30), torch.randn(4, 30, requires_grad=True)
    state = torch.get_rng_state()
    y, _, _ = project(x, w, None, None, 0.4, torch.float32)
    g = torch.randn_like(y)
    (y * g).sum().backward()
    torch.set_rng_state(state)
    x_dropped, _, _ = project(x, torch.eye(30), None, None, 0.4, torch.float32)
    torch.testing.assert_close(w.grad, g.T @ x_dropped)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("used", ["123", "1", "12", "13", "2", "3"])
def test_gradients_pass_a_numerical_check(p: float, used: str) -> None:
    """Whichever of the products there are, and whichever of their outputs the loss reads."""
    torch.manual_seed(0)
    x, w1, w2, w3 = (torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for n in (5, 3, 2, 4))
    there = (w1, w2 if "2" in used else None, w3 if "3" in used else None)
    inputs = [x, *(w for i, w in enumerate(there) if w is not None and (i > 0 or "1" in used))]

    def seeded(*_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(9)
        outputs = project(x, *there, p, torch.float64)
        return tuple(y for i, y in enumerate(outputs, 1) if y is not None and str(i) in used)

    assert torch.autograd.gradcheck(seeded, inputs)


@pytest.mark.parametrize("frozen", ["x", "w1", "w2", "w3"])
def test_what_needs_no_gradient_gets_none_and_the_others_are_right(frozen: str) -> None:
    torch.manual_seed(0)
    tensors = {
        name: torch.randn(n, 6, requires_grad=name != frozen) for name, n in zip(NAMES, (5, 3, 2, 4), strict=True)
    }
    free = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    for inputs in (tensors, free):
        torch.manual_seed(9)
        sum(y.square().sum() for y in project(*inputs.values(), 0.3, torch.float32)).backward()
    assert tensors[frozen].grad is None
    for name in set(NAMES) - {frozen}:
        torch.testing.assert_close(tensors[name].grad, free[name].grad)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_in_bfloat16_the_exact_product_is_float32_and_gradients_err_by_rounding_alone(p: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 48).bfloat16().requires_grad_()
    weights = [torch.randn(n, 48, requires_grad=True) for n in (8, 8, 4)]
    torch.manual_seed(9)
    outputs = project(x, *weights, p, torch.bfloat16)
    assert [y.dtype for y in outputs] == [torch.bfloat16, torch.bfloat16, torch.float32]
    torch.testing.assert_close(outputs[2], x.float() @ weights[2].T, rtol=1e-6, atol=1e-5)
    upstream = [torch.randn_like(y) for y in outputs]
    torch.autograd.backward(outputs, upstream)

    mask = torch.ones(64, 48, dtype=torch.float64)
    if p:
        torch.manual_seed(9)
        mask = project(torch.ones(64, 48), torch.eye(48), None, None, p, torch.float32)[0].double()
    seen = [x.detach().double() * mask, x.detach().double(), x.detach().double()]
    g = [u.double() for u in upstream]
    exact_x = sum(g[i] @ weights[i].detach().double() * (mask if i == 0 else 1) for i in range(3))
    # bfloat16 has 8 bits: two rounded factors and a rounded sum, 3 · 2^-9 of the largest entries
    assert (x.grad - exact_x).norm() < 1e-2 * exact_x.norm()
    for i, w in enumerate(weights):
        exact = g[i].T @ seen[i]
        assert w.grad.dtype == torch.float32
        assert (w.grad - exact).norm() < 1e-2 * exact.norm(), i


def test_no_token_at_all_is_no_special_case() -> None:
    x = torch.zeros(0, 6, requires_grad=True)
    w = torch.randn(3, 6, requires_grad=True)
    project(x, w, w, w, 0.3, torch.float32)[2].sum().backward()
    assert x.grad.shape == (0, 6)
    assert not w.grad.any()


def test_dropout_acts_in_training_only_and_follows_torchs_seed(layer_of: MakeLayer) -> None:
    layer = layer_of(MosgoatConfig(r=8, mixer="dense", dropout=0.5))
    nn.init.normal_(layer.mosgoat_B["default"])
    x = torch.randn(6, 24)
    torch.manual_seed(1)
    first = layer(x)
    assert not torch.equal(first, layer(x))
    torch.manual_seed(1)
    assert torch.equal(first, layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_the_mean_over_dropout_masks_is_the_output_without_dropout(layer_of: MakeLayer) -> None:
    layer = layer_of(MosgoatConfig(r=8, mixer="topk", init="spread", num_experts=4, scaling=1.0, dropout=0.3))
    x = torch.randn(1, 24)
    torch.manual_seed(0)
    outputs = layer(x.expand(40_000, 24)) - layer.base_layer(x)
    expected = layer.eval()(x) - layer.base_layer(x)
    five_sigma = 5 * outputs.std(0) / 200
    assert ((outputs.mean(0) - expected[0]).abs() < five_sigma).all()
