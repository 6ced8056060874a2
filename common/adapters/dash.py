"""LoRA-Dash: after some steps as plain LoRA, the singular directions of W0 that the task changes most are trained too.

Si et al. 2024, Unleashing the Power of Task-Specific Directions in Parameter Efficient Fine-tuning.
Dimension letters: h = min(in, out), t chosen directions.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor
from tqdm import tqdm

from common.adapters.layer import MosgoatLinear
from common.adapters.sharding import whole
from common.adapters.start import svd_segments
from common.errors import UserError

PRE_LAUNCH = 100  # steps, in the paper
_EPSILON = 1e-6  # keeps the change rate of a direction that the weight does not use finite


def launch_step(dash_steps: int | None, total_steps: int) -> int:
    """The step after which the directions are chosen; none given: 100, at most half of the run.

    Raises:
        UserError: a given number leaves no step to train them.
    """
    if dash_steps is None:
        return max(1, min(PRE_LAUNCH, total_steps // 2))
    if dash_steps >= total_steps:
        raise UserError(
            f"adapter.dash_steps={dash_steps} must be less than the {total_steps} steps of this run, or the directions "
            "of LoRA-Dash are never trained"
        )
    return dash_steps


def choose_directions(weight: Tensor, down: Tensor, up: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The singular directions with the largest change rates |uᵢᵀ·ΔW·vᵢ| / (σᵢ + ε).

    Args:
        weight: W0 (out, in).
        down: (r, in), and
        up: (out, r), whose product is ΔW.
        count: t.

    Returns:
        U (out, t) and V (t, in), float32, largest rate first.
    """
    u, sigma, v = svd_segments(weight, [0], min(weight.shape))  # (out, h), (h,), (in, h)
    projected = (u.T @ up.to(u)) * (down.to(v) @ v).T  # (h, r)
    rates = projected.sum(1).abs() / (sigma + _EPSILON)
    chosen = rates.topk(count).indices
    return u[:, chosen].float(), v[:, chosen].T.float().contiguous()


def launch(layers: list[tuple[MosgoatLinear, str]]) -> None:
    """Choose the directions of every layer, in place; the same in every process.

    Args:
        layers: layers with the name of the adapter that is trained.
    """
    with torch.no_grad():
        for layer, adapter in tqdm(layers, desc="choosing directions", unit=" layers", delay=2, disable=None):
            a, b = whole(layer.mosgoat_A[adapter]), whole(layer.mosgoat_B[adapter])
            weight = whole(dequantize_module_weight(layer.get_base_layer()))
            u, v = choose_directions(weight, a, b, layer.specs[adapter].num_directions)
            for kept, found in ((layer.mosgoat_U[adapter], u), (layer.mosgoat_V[adapter], v)):
                kept.copy_(found)
                if dist.is_initialized():  # two directions of nearly the same rate may change places in rounding
                    dist.broadcast(kept, src=0)
