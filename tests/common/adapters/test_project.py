"""The products with x: dropout that is drawn again in the backward, and what is saved for it."""

from collections.abc import Callable

import peft
import pytest
import torch
from torch import nn

from common.adapters import MosgoatConfig, build_config
from common.adapters.layer import MosgoatLinear
from common.adapters.project import keep_probability, kept_entries, project

MakeLayer = Callable[..., MosgoatLinear]


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


def test_gradients_pass_a_numerical_check() -> None:
    torch.manual_seed(0)
    x, w1, w2, w3 = (torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for n in (5, 3, 2, 4))

    def seeded(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(9)
        return project(*tensors, 0.3, torch.float64)

    assert torch.autograd.gradcheck(seeded, (x, w1, w2, w3))


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


def saved_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    own = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept_alive = layer(x)
    del kept_alive
    return sum(storages.values())


def make(method: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    net = nn.Sequential(nn.Linear(256, 256)).to(dtype)
    return peft.get_peft_model(net, build_config(method, r=8, target_modules=["0"], dropout=0.05))


@pytest.mark.parametrize("method", ["moslora", "goat"])
def test_saved_activations_are_below_those_of_pefts_lora(method: str) -> None:
    x = torch.randn(1024, 256, requires_grad=True)
    lora, ours = saved_bytes(make("lora"), x), saved_bytes(make(method), x)
    assert ours < 0.75 * lora
    assert ours < 1.35 * x.nbytes  # x itself, which neighbours share, and tensors r or E wide


@pytest.mark.parametrize("method", ["moslora", "goat"])
def test_a_bfloat16_base_saves_no_float32_copy_of_x(method: str) -> None:
    x = torch.randn(1024, 256, dtype=torch.bfloat16, requires_grad=True)
    assert saved_bytes(make(method, torch.bfloat16), x) < 1.6 * x.nbytes


def test_autocast_saves_the_shared_float32_x_and_no_cast_copy() -> None:
    x = torch.randn(1024, 256, requires_grad=True)
    layer = make("moslora", torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert saved_bytes(layer, x) < 1.1 * x.nbytes


class Twice(nn.Module):
    """Two adapted layers that read one x, as q and k do."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = make("goat"), make("goat")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q(x) + self.k(x)


def test_layers_that_read_one_x_save_it_once() -> None:
    x = torch.randn(1024, 256, requires_grad=True)
    assert saved_bytes(Twice(), x) < 1.7 * x.nbytes


def test_a_frozen_a_needs_no_x_at_all(layer_of: MakeLayer) -> None:
    layer = layer_of(MosgoatConfig(r=4, mixer="identity", train_a=False), 256, 256)
    x = torch.randn(1024, 256, requires_grad=True)
    assert saved_bytes(layer, x) < 0.1 * x.nbytes
