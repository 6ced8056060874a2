"""What the rest of the suite asks of a model with adapters: balance loss, router load, tensors, counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from common.adapters.layer import MosgoatLinear
from common.adapters.routing import RoutingRecord, expert_counts, load_balance
from common.adapters.spec import LayerSpec
from common.adapters.upcycled import UpcycledLinear, UpcycledSpec

# The denominator of [G] Table 1's column "# Params (%)" for ViT-B/32; it reproduces every row.
GOAT_TABLE_1_PARAMETERS = 88_715_520


def balance_loss(model: nn.Module) -> Tensor:
    """The balance loss of the last forward pass in training, [G] eq. 26-28, summed over layers.

    Call it after the forward and before the next one; it works under non-reentrant gradient checkpointing,
    where a loss kept on the layers by the forward itself would be computed twice.

    Args:
        model: any module with routed adapters somewhere below.

    Returns:
        0-dim float32, already times the coefficient; zero when no routed adapter was active in training.
    """
    return balance_and_load(model)[0]


def balance_and_load(model: nn.Module) -> tuple[Tensor, dict[tuple[str, ...], Tensor]]:
    """`balance_loss`, and how often each expert was chosen in the same forward pass.

    Nothing waits for the device, and what gradient checkpointing computes again is not counted again.

    Args:
        model: any module with routed adapters somewhere below.

    Returns:
        The balance loss, and names of layers -> (layers, E) on their device: how many tokens chose each expert,
        int64; the sum of its routing weights, floating, where every expert acts on every token.
    """
    groups: dict[tuple[Any, ...], list[tuple[str, Tensor | None, Tensor, Tensor | None]]] = defaultdict(list)
    for name, spec, record in _routed(model):
        if record.chosen is not None:
            chosen, mask = record.chosen, record.mask_for(record.chosen.shape[0])
            kind = (chosen.shape, chosen.dtype, chosen.device, id(mask), record.logits is None)
            groups[(spec.balance_weight, spec.num_experts, *kind)].append((name, record.logits, chosen, mask))
    total: Tensor | None = None
    load = {}
    for (weight, num_experts, *_), layers in groups.items():
        # layers of one shape at once: a handful of kernels instead of a handful per layer
        names, logits, choices, masks = zip(*layers, strict=True)
        chosen, mask = torch.stack(choices), masks[0]  # (layers, N, k), or (layers, N, E)
        load[names] = expert_counts(chosen, num_experts, mask)
        if logits[0] is not None:
            loss = load_balance(torch.stack(logits), chosen, mask, load[names]).sum() * weight
            total = loss if total is None else total + loss.to(total.device)
    if total is None:
        parameter = next(model.parameters(), None)
        total = torch.zeros((), device=None if parameter is None else parameter.device)
    return total.float(), load


def set_token_mask(model: nn.Module, mask: Tensor | None) -> None:
    """Say which tokens the balance loss and the router load count; the mask stays until it is replaced.

    Args:
        model: the (sub-)model all of whose routed layers see these tokens.
        mask: any shape with as many entries as the layers see tokens, true where a token is real; None: all.
    """
    flat = None if mask is None else mask.detach().reshape(-1).bool()
    for _, _, record in _routed(model):
        record.token_mask = flat


def router_load(model: nn.Module) -> dict[str, Tensor]:
    """How evenly the experts are used, [G] Figure 7: counted over forward passes in evaluation mode.

    Args:
        model: any module with routed adapters below.

    Returns:
        Layer name -> (E,) float32 on the CPU, each expert's share of the routed slots since
        `reset_router_load`; layers that saw no token are left out. A layer with several routed adapters
        shows the active one.
    """
    shares = {}
    for name, _, record in _routed(model):
        if record.load is not None and record.load.sum() > 0:
            shares[name] = (record.load / record.load.sum()).float().cpu()
    return shares


def reset_router_load(model: nn.Module) -> None:
    """Start counting anew."""
    for _, _, record in _routed(model):
        record.load = None


def adapter_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor that belongs to a PEFT tuner layer below `module`, frozen ones included, the base layers' not.

    Args:
        module: any module, wrapped by PEFT or not.

    Returns:
        Name in `module.state_dict()` -> the tensor itself, detached.
    """
    found = [name for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)]
    prefixes = [name + "." if name else "" for name in found]
    bases = tuple(prefix + "base_layer." for prefix in prefixes)
    return {
        key: value
        for key, value in module.state_dict().items()
        if key.startswith(tuple(prefixes)) and not key.startswith(bases)
    }


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters are trained, of how many.

    Args:
        trainable: number of trained parameters.
        total: what the fraction refers to.
    """

    trainable: int
    total: int

    @property
    def fraction(self) -> float:
        """Trained share, in [0, 1]."""
        return self.trainable / self.total

    @property
    def percent(self) -> str:
        """Percent with two decimals cut off, not rounded, as the papers print it."""
        hundredths = self.trainable * 10_000 // self.total
        return f"{hundredths // 100}.{hundredths % 100:02d}"


def trainable_fraction(model: nn.Module, total: int | None = None) -> ParameterCount:
    """Count trained parameters; reads shapes only, so that a model on the meta device will do.

    Args:
        model: the model with its adapters.
        total: what the count is compared with, such as `GOAT_TABLE_1_PARAMETERS`; None: all parameters of
            `model`, adapters included, as PEFT prints it.
    """
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return ParameterCount(trainable, sum(p.numel() for p in parameters) if total is None else total)


def _routed(model: nn.Module) -> Iterator[tuple[str, LayerSpec | UpcycledSpec, RoutingRecord]]:
    for name, layer in model.named_modules():
        if isinstance(layer, MosgoatLinear | UpcycledLinear):
            for adapter in layer.active_adapters:
                if adapter in layer.routing:
                    yield name, layer.specs[adapter], layer.routing[adapter]
