"""What the tests of the classifier share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common.config import AdapterConfig, Method
from vit_classify.model import VitClassifier

CLASSES = ["stop sign", "yield sign", "speed limit"]
TEMPLATES = ["a photo of a {}.", "a blurry {}"]
ADAPTERS: list[Method] = ["lora", "moslora", "goat", "goat_plus"]

Load = Callable[..., VitClassifier]


def pictures(count: int = 2, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def disturb(classifier: VitClassifier) -> None:
    """Move everything that is trained away from its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(classifier).values():
            parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.02).to(parameter.device))


def config_for(method: Method, **options: Any) -> AdapterConfig:
    return AdapterConfig(method, **({} if method in ("full", "linear_probe") else {"dropout": 0.0}), **options)
