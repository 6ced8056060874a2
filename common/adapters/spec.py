"""What one adapter is on one layer: its settings, the shapes of its tensors, and their start values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from common.adapters.config import SVD_STARTS, Mixer, MosgoatConfig
from common.adapters.start import mixer_start, random_a, svd_start


@dataclass(frozen=True)
class LayerSpec:
    """What one adapter is on one layer.

    Args:
        r: total rank.
        scaling: s.
        mixer: how A's outputs are mixed.
        num_experts: E.
        top_k: k.
        dropout: probability on x.
        mean_mixing: mean of M over the routing: 1/E when routed, else 1; the residual is s·mean_mixing·B0·A0.
        balance_weight: coefficient of the balance loss.
        frozen: names of the weights that are not trained.
    """

    r: int
    scaling: float
    mixer: Mixer
    num_experts: int
    top_k: int
    dropout: float
    mean_mixing: float
    balance_weight: float
    frozen: tuple[str, ...]

    @staticmethod
    def of(config: MosgoatConfig, r: int, alpha: float, in_features: int) -> LayerSpec:
        """The adapter of `config` on a layer with `in_features` inputs and its own `r` and `alpha`."""
        frozen = [] if config.train_a else ["mosgoat_A"]
        frozen += [] if config.train_b else ["mosgoat_B"]
        frozen += [] if config.train_mixer else ["mosgoat_mixer", "mosgoat_router"]
        return LayerSpec(
            r=r,
            scaling=config.scaling_factor(r, alpha, in_features),
            mixer=config.mixer,
            num_experts=config.num_experts,
            top_k=config.top_k,
            dropout=config.dropout,
            mean_mixing=1 / config.num_experts if config.routed else 1.0,
            balance_weight=config.balance_weight,
            frozen=tuple(frozen),
        )


def tensor_shapes(config: MosgoatConfig, spec: LayerSpec, layer: nn.Linear) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the adapter keeps on a layer."""
    shapes: dict[str, tuple[int, ...]] = {
        "mosgoat_A": (spec.r, layer.in_features),
        "mosgoat_B": (layer.out_features, spec.r),
    }
    if spec.mixer == "dense":
        shapes["mosgoat_mixer"] = (spec.r, spec.r)
    if spec.mixer == "topk":
        shapes["mosgoat_router"] = (spec.num_experts, layer.in_features)
    if config.init in SVD_STARTS:
        shapes["mosgoat_A0"], shapes["mosgoat_B0"] = shapes["mosgoat_A"], shapes["mosgoat_B"]
    if config.segment_scaling:
        shapes["mosgoat_segment_scale"] = (spec.num_experts,)
    return shapes


def start_values(config: MosgoatConfig, spec: LayerSpec, layer: nn.Linear) -> dict[str, Tensor]:
    """Start values of a new adapter in float32 on the layer's device; random ones from torch's CPU generator.

    Args:
        config: the adapter's configuration.
        spec: the same for this layer.
        layer: the base layer; a quantised weight is dequantised for the SVD.

    Returns:
        Name -> tensor; all NaN when the values are to come from a file, shapes only on the meta device.
    """
    shapes = tensor_shapes(config, spec, layer)
    device = layer.weight.device
    if config.weights_saved or device.type == "meta":
        # NaN until the file is loaded: a forgotten load must not pass for an adapter
        return {name: torch.full(shape, math.nan, device=device) for name, shape in shapes.items()}

    values: dict[str, Tensor] = {}
    if config.init in SVD_STARTS:
        start = svd_start(
            dequantize_module_weight(layer),
            rule=config.init,
            r=spec.r,
            num_experts=spec.num_experts,
            scaling=spec.scaling,
            rho=config.rho,
            plus=config.segment_scaling,
        )
        values["mosgoat_A"], values["mosgoat_B"] = start.a0, start.b0
        values["mosgoat_A0"], values["mosgoat_B0"] = start.a0.clone(), start.b0.clone()
        values["mosgoat_segment_scale"] = start.segment_scale
    else:
        values["mosgoat_A"] = random_a(config.init, spec.r, layer.in_features)
        values["mosgoat_B"] = torch.zeros(layer.out_features, spec.r, device="cpu")
    if spec.mixer == "dense":
        values["mosgoat_mixer"] = mixer_start(config.mixer_init, spec.r)
    if spec.mixer == "topk":
        values["mosgoat_router"] = random_a("kaiming", spec.num_experts, layer.in_features)
    return {name: values[name].to(device) for name in shapes}
