"""Small models that the adapter tests share."""

from collections.abc import Callable

import peft
import pytest
import torch
from torch import nn

from common.adapters import build_config
from common.adapters.layer import MosgoatLinear
from tests.common.adapters.tiny_models import Mlp, shake


@pytest.fixture
def mlp() -> Callable[[], Mlp]:
    """Makes the same small model every time."""

    def make() -> Mlp:
        torch.manual_seed(1)
        return Mlp()

    return make


@pytest.fixture
def x() -> torch.Tensor:
    """Three sequences of five inputs of the small model."""
    return torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def adapted(mlp: Callable[[], Mlp]) -> Callable[..., peft.PeftModel]:
    """Makes an adapted small model whose adapter is not at its start, so that every weight matters."""

    def make(method: str = "goat", *, moved: bool = True, r: int = 8, **overrides: object) -> peft.PeftModel:
        model = mlp()
        torch.manual_seed(2)
        wrapped = peft.get_peft_model(model, build_config(method, r=r, target_modules=["fc1", "fc2"], **overrides))
        if moved:
            shake(wrapped)
        return wrapped

    return make


@pytest.fixture
def layer_of() -> Callable[..., MosgoatLinear]:
    """Makes one adapted linear layer from a configuration."""

    def make(config: peft.PeftConfig, in_features: int = 24, out_features: int = 40) -> MosgoatLinear:
        torch.manual_seed(1)
        net = nn.Sequential()
        net.add_module("target", nn.Linear(in_features, out_features))
        config.target_modules = ["target"]
        return peft.get_peft_model(net, config).base_model.model.target

    return make
