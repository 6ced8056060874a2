"""What an adapter has learned, layer by layer: the singular values of its update, and its mixers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from common.adapters.layer import MosgoatLinear

_BASE = "base_model.model."


def update_spectra(model: nn.Module) -> dict[str, Tensor]:
    """Singular values of the update of every layer with an active low-rank adapter.

    The update is s·B·M·A - R. Of a routed adapter it is the mean over a balanced routing, M = 1/E, which is zero at the
    start of GOAT too. DoRA's magnitude is left out. They are those of a product of small triangular matrices, and
    the update itself is never formed.

    Args:
        model: any module with adapters below.

    Returns:
        Layer name -> (q,) float32 on the CPU, descending; q is the rank, twice that where there is a residual. Layers
        whose adapter has no narrow factors (LoHa, LoKr, NEAT, ...) are left out.
    """
    found = {}
    with torch.no_grad():
        for name, layer, adapter in _active(model):
            factors = update_factors(layer, adapter)
            if factors is not None:
                found[name] = product_spectrum(*factors).cpu()
    return found


def product_spectrum(down: Tensor, up: Tensor) -> Tensor:
    """Singular values of up·down, descending, from the triangular factors of both: (min(q, in, out),) float32.

    Args:
        down: (q, in).
        up: (out, q).
    """
    r_up = torch.linalg.qr(up.float(), mode="r").R  # (min(out, q), q)
    r_down = torch.linalg.qr(down.float().T, mode="r").R  # (min(in, q), q)
    return torch.linalg.svdvals(r_up @ r_down.T)


def update_factors(layer: Any, adapter: str) -> tuple[Tensor, Tensor] | None:
    """(q, in) and (out, q) whose product is the update of a layer, its mean for a routed one; None if it has none."""
    if isinstance(layer, MosgoatLinear):
        if layer.specs[adapter].routed:
            return _mean_factors(layer, adapter)
        down, up, scaling = layer.plain_factors(adapter)
        return down, up * scaling
    if isinstance(layer, LoraLayer) and adapter in layer.lora_A and isinstance(layer.get_base_layer(), nn.Linear):
        a, b, scaling = layer.lora_A[adapter], layer.lora_B[adapter], layer.scaling[adapter]
        if isinstance(layer, AdaLoraLayer):
            return a * layer.lora_E[adapter], b * (scaling / (layer.ranknum[adapter] + 1e-5))
        return a.weight, b.weight * scaling
    return None


def _mean_factors(layer: MosgoatLinear, adapter: str) -> tuple[Tensor, Tensor]:
    spec = layer.specs[adapter]
    a, b = layer.mosgoat_A[adapter], layer.mosgoat_B[adapter]
    factor: Tensor | float = spec.scaling / spec.num_experts
    if adapter in layer.mosgoat_segment_scale:
        factor = factor * layer.mosgoat_segment_scale[adapter].repeat_interleave(b.shape[1] // spec.num_experts)
    up = b * factor
    if a.shape[0] < b.shape[1]:  # one A for all heads: their mean is one B
        up = up.unflatten(1, (spec.num_experts, -1)).sum(1)
    if adapter not in layer.mosgoat_A0:
        return a, up
    # [G] eq. 15: what is left of the start when the residual is taken off
    return torch.cat([a, layer.mosgoat_A0[adapter]]), torch.cat([up, layer.mosgoat_B0[adapter] * -factor], dim=1)


def dense_mixers(model: nn.Module) -> dict[str, Tensor]:
    """The trained r × r mixers of active adapters: layer name -> M (r, r) float32 on the CPU."""
    return {
        name: layer.mosgoat_mixer[adapter].detach().float().cpu()
        for name, layer, adapter in _active(model)
        if isinstance(layer, MosgoatLinear) and layer.specs[adapter].mixer == "dense"
    }


def _active(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            adapters = [adapter for adapter in layer.active_adapters if adapter in layer._get_available_adapters()]
            for adapter in adapters:
                shown = name.replace(_BASE, "")
                yield shown if len(adapters) == 1 else f"{shown} ({adapter})", layer, adapter
