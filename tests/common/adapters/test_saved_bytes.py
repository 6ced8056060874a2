"""What a layer keeps in memory between forward and backward: no private copy of x, no dropout mask."""

from collections.abc import Callable

import peft
import pytest
import torch
from torch import nn

from benchmarks.measure import saved_bytes
from common.adapters import MosgoatConfig, build_config
from common.adapters.layer import MosgoatLinear

MakeLayer = Callable[..., MosgoatLinear]


def make(method: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    net = nn.Sequential(nn.Linear(256, 256)).to(dtype)
    return peft.get_peft_model(net, build_config(method, r=8, target_modules=["0"], dropout=0.05))


def saved(model: nn.Module, x: torch.Tensor) -> int:
    return saved_bytes(lambda: model(x), (*model.parameters(), *model.buffers()))


def test_storages_are_counted_once_and_weights_not_at_all() -> None:
    x, weight = torch.randn(8, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    # two products save x, and views of it; the second saves the result of the first
    assert saved_bytes(lambda: x[:4] @ weight + x[4:] @ weight.T, [weight]) == x.nbytes
    assert saved_bytes(lambda: x @ weight, []) == x.nbytes + weight.nbytes


@pytest.mark.parametrize("method", ["moslora", "goat"])
def test_saved_activations_are_below_those_of_pefts_lora(method: str) -> None:
    x = torch.randn(1024, 256, requires_grad=True)
    lora, ours = saved(make("lora"), x), saved(make(method), x)
    assert ours < 0.75 * lora
    assert ours < 1.35 * x.nbytes  # x itself, which neighbours share, and tensors r or E wide


@pytest.mark.parametrize("method", ["moslora", "goat"])
def test_a_bfloat16_base_saves_no_float32_copy_of_x(method: str) -> None:
    x = torch.randn(1024, 256, dtype=torch.bfloat16, requires_grad=True)
    assert saved(make(method, torch.bfloat16), x) < 1.6 * x.nbytes


def test_autocast_saves_the_shared_float32_x_and_no_cast_copy() -> None:
    x = torch.randn(1024, 256, requires_grad=True)
    layer = make("moslora", torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert saved(layer, x) < 1.1 * x.nbytes


class Twice(nn.Module):
    """Two adapted layers that read one x, as q and k do."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = make("goat"), make("goat")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q(x) + self.k(x)


def test_layers_that_read_one_x_save_it_once() -> None:
    x = torch.randn(1024, 256, requires_grad=True)
    assert saved(Twice(), x) < 1.7 * x.nbytes


@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_what_a_frozen_a_saves_does_not_grow_with_the_width_of_x(layer_of: MakeLayer, dropout: float) -> None:
    """LoRA-FA: the gradient of B needs A·x, which is r wide, and not x."""
    found = []
    for width in (256, 1024):
        layer = layer_of(MosgoatConfig(r=4, mixer="identity", train_a=False, dropout=dropout), width, 256)
        found.append(saved(layer, torch.randn(1024, width, requires_grad=True)))
    small_matrices = 4 * (4 * 1024 + 256 * 4)  # A and the scaled B in float32, whatever the number of tokens
    assert found[1] <= found[0] + small_matrices
    assert found[1] <= 4 * 1024 * 4 + 2 * small_matrices  # A·x and these
