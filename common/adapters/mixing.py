"""Mixers: M·A where M is the same for every token, M(x)·h where a router weighs experts for each.

Dimension letters: N tokens, r total rank, E experts, d = r/E.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.adapters.routing import RoutingRecord, route, route_by_threshold
from common.adapters.spec import LayerSpec


def fold(mixer: str, a: Tensor, m: Tensor | None) -> Tensor:
    """M·A (r, in) for a mixer that does not depend on x, A alone for a routed one.

    Folding M into A makes such a mixer cost nothing per token.

    Args:
        mixer: as in `MosgoatConfig`.
        a: A (r, in); (d, in) where experts share it.
        m: M (r, r) of a dense mixer, its diagonal (r,) of a diagonal one.
    """
    if mixer == "dense":
        assert m is not None
        return m @ a
    if mixer == "diagonal":
        assert m is not None
        return m[:, None] * a
    if mixer == "butterfly":
        top, bottom = a.chunk(2)  # [M] eq. 6
        return torch.cat([top + bottom, top + bottom])
    return a


def mix_experts(
    h: Tensor, logits: Tensor, threshold_bias: Tensor | None, spec: LayerSpec, record: RoutingRecord, training: bool
) -> Tensor:
    """M(x)·h: every expert's part of h times its routing weight, zero where it is not chosen.

    Args:
        h: A·x, (N, r); (N, d) where experts share A.
        logits: (N, E) float32, and the logit of the token's threshold behind them where the mixer has one.
        threshold_bias: (1,) float32, b_τ of such a mixer.
        spec: of the layer.
        record: remembers the routing.
        training: whether the layer is in training mode.

    Returns:
        (N, r) in the wider dtype of the two.
    """
    if spec.mixer == "topk":
        weights, chosen = route(logits, spec.top_k)  # (N, E), (N, k)
        record.keep(logits, chosen, training)
    elif spec.mixer == "threshold":
        assert threshold_bias is not None
        logits, threshold = logits[:, :-1], logits[:, -1:] + threshold_bias
        weights, chosen = route_by_threshold(logits, threshold)  # (N, E), (N, E)
        record.keep(logits, chosen, training)
    else:
        weights = logits.softmax(-1)
        record.keep(None, weights, training)  # HydraLoRA has no balance loss
    parts = h.unsqueeze(-2) if spec.mixer == "shared_a" else h.unflatten(-1, (spec.num_experts, -1))  # (N, 1 or E, d)
    return (parts * weights.unsqueeze(-1)).flatten(-2)
