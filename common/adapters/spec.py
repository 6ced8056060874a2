"""What one adapter is on one layer: its settings, the shapes of its tensors, and their start values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from common.adapters.config import ROUTED_MIXERS, SVD_STARTS, Mixer, MosgoatConfig
from common.adapters.start import SvdStart, mixer_start, random_a, random_b, require_finite, svd_start
from common.errors import UserError

# The trained weights that are M.
MIXER_NAMES = ["mosgoat_mixer", "mosgoat_router", "mosgoat_threshold", "mosgoat_threshold_bias"]


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
        num_directions: how many singular directions LoRA-Dash trains.
        dash_steps: steps before they are chosen; None: worked out from the length of the run.
        singular_coef: weight of KaSA's loss of the diagonal.
        orthogonal_coef: weight of KaSA's loss of A and B.
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
    num_directions: int
    dash_steps: int | None
    singular_coef: float
    orthogonal_coef: float
    mean_mixing: float
    balance_weight: float
    frozen: tuple[str, ...]

    @property
    def routed(self) -> bool:
        """Whether M depends on x."""
        return self.mixer in ROUTED_MIXERS

    @property
    def expert_rank(self) -> int:
        """d, rank of one of the E experts, or of one of the E segments of an SVD start."""
        return self.r // self.num_experts

    @property
    def rows_of_a(self) -> int:
        """How many rows A has: r, or d where all experts share one A."""
        return self.expert_rank if self.mixer == "shared_a" else self.r

    @staticmethod
    def of(config: MosgoatConfig, r: int, alpha: float, mixer: Mixer, in_features: int) -> LayerSpec:
        """The adapter of `config` on a layer with `in_features` inputs and its own `r`, `alpha` and `mixer`."""
        frozen = [] if config.train_a else ["mosgoat_A"]
        frozen += [] if config.train_b else ["mosgoat_B"]
        frozen += [] if config.train_mixer else MIXER_NAMES
        return LayerSpec(
            r=r,
            scaling=config.scaling_factor(r, alpha, in_features),
            mixer=mixer,
            num_experts=config.num_experts,
            top_k=config.top_k,
            dropout=config.dropout,
            num_directions=config.num_directions,
            dash_steps=config.dash_steps,
            singular_coef=config.singular_coef,
            orthogonal_coef=config.orthogonal_coef,
            mean_mixing=1 / config.num_experts if config.routed else 1.0,
            balance_weight=config.balance_weight,
            frozen=tuple(frozen),
        )


def tensor_shapes(config: MosgoatConfig, spec: LayerSpec, layer: nn.Linear) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the adapter keeps on a layer."""
    shapes: dict[str, tuple[int, ...]] = {
        "mosgoat_A": (spec.rows_of_a, layer.in_features),
        "mosgoat_B": (layer.out_features, spec.r),
    }
    if spec.mixer == "dense":
        shapes["mosgoat_mixer"] = (spec.r, spec.r)
    if spec.mixer == "diagonal":
        shapes["mosgoat_mixer"] = (spec.r,)
    if spec.num_directions:
        smaller = min(layer.in_features, layer.out_features)
        if spec.num_directions > smaller:
            raise UserError(
                f"num_directions={spec.num_directions} is more than the {smaller} singular directions of a layer "
                f"{layer.in_features} -> {layer.out_features}; use {smaller} or fewer"
            )
        shapes["mosgoat_sigma"] = (spec.num_directions,)
        shapes["mosgoat_U"] = (layer.out_features, spec.num_directions)
        shapes["mosgoat_V"] = (spec.num_directions, layer.in_features)
    if spec.routed:
        shapes["mosgoat_router"] = (spec.num_experts, layer.in_features)
    if spec.mixer == "threshold":
        shapes["mosgoat_threshold"], shapes["mosgoat_threshold_bias"] = (1, layer.in_features), (1,)
    if config.has_residual:
        shapes["mosgoat_A0"], shapes["mosgoat_B0"] = shapes["mosgoat_A"], shapes["mosgoat_B"]
    if config.segment_scaling:
        shapes["mosgoat_segment_scale"] = (spec.num_experts,)
    return shapes


def start_values(config: MosgoatConfig, spec: LayerSpec, layer: nn.Linear, name: str) -> dict[str, Tensor]:
    """Start values of a new adapter in float32 on the layer's device; random ones from torch's CPU generator.

    Args:
        config: the adapter's configuration.
        spec: the same for this layer.
        layer: the base layer; a quantised weight is dequantised for the SVD.
        name: of the layer, for messages.

    Returns:
        Name -> tensor; all NaN when the values are to come from a file, shapes only on the meta device.

    Raises:
        UserError: the weight to be decomposed is not finite.
    """
    shapes = tensor_shapes(config, spec, layer)
    device = layer.weight.device
    if config.weights_saved or device.type == "meta":
        # NaN until the file is loaded: a forgotten load must not pass for an adapter
        return {name: torch.full(shape, math.nan, device=device) for name, shape in shapes.items()}

    values: dict[str, Tensor] = {}
    if config.init in SVD_STARTS:
        start = svd_start(
            require_finite(dequantize_module_weight(layer), name),
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
        values["mosgoat_A"] = random_a(config.init, spec.rows_of_a, layer.in_features)
        values["mosgoat_B"] = random_b(config.init, layer.out_features, spec.r)
    if config.truncate:
        tail = smallest_triplets(require_finite(dequantize_module_weight(layer), name), spec.r, spec.scaling)
        values["mosgoat_A0"], values["mosgoat_B0"] = tail.a0, tail.b0
    for name in ("mosgoat_sigma", "mosgoat_U", "mosgoat_V"):  # nothing until the directions are chosen
        if name in shapes:
            values[name] = torch.zeros(shapes[name], device="cpu")
    if spec.mixer == "dense":
        values["mosgoat_mixer"] = mixer_start(config.mixer_init, spec.r)
    if spec.mixer == "diagonal":
        values["mosgoat_mixer"] = torch.randn(spec.r, device="cpu")
    if spec.routed:
        values["mosgoat_router"] = random_a("kaiming", spec.num_experts, layer.in_features)
    if spec.mixer == "threshold":
        values["mosgoat_threshold"] = random_a("kaiming", 1, layer.in_features)
        bound = layer.in_features**-0.5  # weight and bias as a torch.nn.Linear starts them
        values["mosgoat_threshold_bias"] = torch.empty(1, device="cpu").uniform_(-bound, bound)
    return {name: values[name].to(device) for name in shapes}


def smallest_triplets(weight: Tensor, r: int, scaling: float) -> SvdStart:
    """The r smallest singular triplets of a weight, as factors with s·B0·A0 equal to their sum.

    Args:
        weight: W0 (out, in).
        r: how many.
        scaling: s.

    Raises:
        UserError: nothing would be left of the weight.
    """
    if r >= min(weight.shape):
        raise UserError(
            f"r={r} triplets are to be taken from a layer {weight.shape[1]} -> {weight.shape[0]}, which would leave "
            f"nothing of it; use r < {min(weight.shape)}"
        )
    return svd_start(weight, rule="minor", r=r, num_experts=1, scaling=scaling, rho=1.0, plus=False)
