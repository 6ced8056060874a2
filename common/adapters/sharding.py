"""Weights that FSDP2 has divided among processes, seen from outside the forward pass."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor: what FSDP2 has sharded is gathered, differentiably; any other is itself. A collective call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
