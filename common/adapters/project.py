"""The products of a layer's input with the adapter's small matrices.

All that reads x is in one autograd function, for two reasons. It saves x itself, which the neighbouring
layers share, and neither a dropped nor a cast copy of it: the dropout mask is drawn again in the backward
from a saved seed. And the gradient with respect to x is accumulated once.

Dimension letters: N tokens, in input features, rows of the stacked small matrices.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_LANES = 65536  # a 64-bit draw gives four 16-bit lanes


def kept_entries(like: Tensor, p: float, seed: int) -> Tensor:
    """Ones where dropout keeps an entry and zeros where it drops it; not scaled up.

    Args:
        like: gives shape, dtype and device.
        p: probability of zero, rounded to a multiple of 1/65536 (see `keep_probability`).
        seed: the same seed gives the same entries for the same shape on the same kind of device.

    Returns:
        A new contiguous tensor, free to be changed in place.
    """
    generator = torch.Generator(device=like.device).manual_seed(seed)
    draws = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    draws.random_(-(2**63), None, generator=generator)
    # 16 bits a decision: on a CPU about seven times faster than bernoulli_, which takes a third of the layer's time
    lanes = draws.view(torch.int16)[: like.numel()].view(like.shape)
    kept = torch.empty_like(like, memory_format=torch.contiguous_format)
    return torch.ge(lanes, _dropped_lanes(p) - _LANES // 2, out=kept)


def keep_probability(p: float) -> float:
    """The exact probability with which `kept_entries` keeps an entry."""
    return 1 - _dropped_lanes(p) / _LANES


def _dropped_lanes(p: float) -> int:
    return min(round(p * _LANES), _LANES - 1)


class _Project(torch.autograd.Function):
    """(x, W1, W2, W3) -> (mask∘x·W1ᵀ, x·W2ᵀ, x·W3ᵀ), the third in the dtype of W3; W2 and W3 may be None."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_dropped: Tensor, w_plain: Tensor | None, w_exact: Tensor | None, p: float, seed: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.p, ctx.seed, ctx.x_dtype = p, seed, x.dtype
        ctx.save_for_backward(x if any(ctx.needs_input_grad[1:4]) else None, w_dropped, w_plain, w_exact)
        ctx.set_materialize_grads(False)
        with torch.autocast(x.device.type, enabled=False):
            cast = x.to(w_dropped.dtype)
            out = F.linear(kept_entries(cast, p, seed).mul_(cast) if p else cast, w_dropped)
            plain = None if w_plain is None else F.linear(cast, w_plain)
            exact = None if w_exact is None else F.linear(x.to(w_exact.dtype), w_exact)
        return out, plain, exact

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        need_x, *need_w = ctx.needs_input_grad[:4]
        g_x: Tensor | None = None
        g_w: list[Tensor | None] = [None, None, None]
        for i, (g, w) in enumerate(zip(grads, weights, strict=True)):
            if g is None:
                continue
            with torch.autocast(g.device.type, enabled=False):
                masked = i == 0 and ctx.p
                kept = kept_entries(g.new_empty(g.shape[0], w.shape[1]), ctx.p, ctx.seed) if masked else None
                if need_x:
                    part = g @ w  # (N, in)
                    if kept is not None:
                        part.mul_(kept)
                    part = part.to(ctx.x_dtype)
                    g_x = part if g_x is None else g_x.add_(part)
                if need_w[i]:
                    seen = x.to(w.dtype)
                    g_w[i] = g.T @ (seen if kept is None else kept.mul_(seen))
        return g_x, *g_w, None, None


def project(
    x: Tensor, w_dropped: Tensor, w_plain: Tensor | None, w_exact: Tensor | None, p: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Products of the input with stacked rows of small matrices, one of them behind dropout.

    Args:
        x: (N, in), any floating dtype.
        w_dropped: (rows, in), sees inverted dropout of x; None of the three needs the dtype of x.
        w_plain: (rows, in), sees x; or None.
        w_exact: (rows, in), sees x in the dtype of this matrix; or None.
        p: dropout probability, 0 outside training.
        dtype: of the first two products.

    Returns:
        The three products (N, rows), None where there is no matrix.
    """
    w_plain = None if w_plain is None else w_plain.to(dtype)
    if torch.compiler.is_compiling():
        # the compiler plans saved tensors and dropout masks itself, and knows no generators
        cast = x.to(dtype)
        return (
            F.linear(F.dropout(cast, p), w_dropped.to(dtype)),
            None if w_plain is None else F.linear(cast, w_plain),
            None if w_exact is None else F.linear(x.to(w_exact.dtype), w_exact),
        )
    seed = 0
    if p:
        # from torch's own generator on the CPU: no synchronisation, and checkpointing replays it
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        w_dropped = w_dropped / keep_probability(p)
    return _Project.apply(x, w_dropped.to(dtype), w_plain, w_exact, p, seed)
