"""The products of a layer's input with the adapter's small matrices.

All that reads x is in one autograd function, for two reasons. It saves x itself, which the neighbouring
layers share, and neither a dropped nor a cast copy of it: the dropout mask is drawn again in the backward
from a saved seed. And the gradient with respect to x is accumulated once.

Dimension letters: N tokens, in input features, rows of the stacked small matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_LANES = 65536  # a 64-bit draw gives four 16-bit lanes


def autocast_device(x: Tensor) -> str:
    """The kind of device whose autocast applies to `x`; the meta device, where shapes are counted, has none."""
    return "cpu" if x.is_meta else x.device.type


def kept_entries(like: Tensor, p: float, seed: int) -> Tensor:
    """Ones where dropout keeps an entry and zeros where it drops it; not scaled up.

    Args:
        like: gives shape (one dimension or more), dtype and device.
        p: probability of zero, rounded to a multiple of 1/65536 (see `keep_probability`).
        seed: the same seed gives the same entries for the same shape on the same kind of device.

    Returns:
        A new contiguous tensor, free to be changed in place.
    """
    generator = torch.Generator(device=like.device).manual_seed(seed)
    *rows, columns = like.shape
    draws = torch.empty((*rows, (columns + 3) // 4), dtype=torch.int64, device=like.device)
    draws.random_(-(2**63), None, generator=generator)
    # 16 bits a decision: on a CPU about seven times faster than bernoulli_, which takes a third of the layer's time
    lanes = draws.view(torch.int16)[..., :columns]
    kept = torch.empty_like(like, memory_format=torch.contiguous_format)
    return torch.ge(lanes, _dropped_lanes(p) - _LANES // 2, out=kept)


def keep_probability(p: float) -> float:
    """The exact probability with which `kept_entries` keeps an entry."""
    return 1 - _dropped_lanes(p) / _LANES


def _dropped_lanes(p: float) -> int:
    return min(round(p * _LANES), _LANES - 1)


class _Project(torch.autograd.Function):
    """(x, W1, W2, W3) -> (mask∘x·W1ᵀ/keep, x·W2ᵀ, x·W3ᵀ), the third in float32 or wider; W2 and W3 may be None.

    Casting, stacking and scaling are in here, since each outside would be a node of autograd's graph: on matrices as
    small as these a node takes longer than its work.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_dropped: Tensor,
        w_plain: Tensor | None,
        w_exact: Tensor | None,
        p: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor | None, ...]:
        # from torch's own generator on the CPU: no synchronisation, and checkpointing replays it
        ctx.seed = int(torch.randint(2**63 - 1, (), device="cpu")) if p else 0
        ctx.p, ctx.dtype, ctx.x_dtype = p, dtype, x.dtype
        ctx.save_for_backward(x if any(ctx.needs_input_grad[1:4]) else None, w_dropped, w_plain, w_exact)
        ctx.set_materialize_grads(False)
        exact_dtype = torch.promote_types(dtype, torch.float32)
        out: list[Tensor | None] = [None, None, None]
        with torch.autocast(autocast_device(x), enabled=False):
            cast = x.to(dtype)
            weights = {i: w for i, w in enumerate((w_dropped, w_plain, w_exact)) if w is not None}
            if p:
                dropped = kept_entries(cast, p, ctx.seed).mul_(cast)
                out[0] = F.linear(dropped, weights.pop(0).to(dtype)).div_(keep_probability(p))
            if 2 in weights and dtype != exact_dtype:
                out[2] = F.linear(x.to(exact_dtype), weights.pop(2).to(exact_dtype))
            if weights:  # these see the same x and are one product
                product = F.linear(cast, _stack([w.to(dtype) for w in weights.values()], 0))
                for i, part in zip(weights, _parts(product, [len(w) for w in weights.values()], 1), strict=True):
                    out[i] = part
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        need_x, *need_w = ctx.needs_input_grad[:4]
        g_x: Tensor | None = None
        g_w: list[Tensor | None] = [None, None, None]
        # in one dtype, as autocast's backward would be; those without a mask are one product
        upstream = {i: g.to(ctx.dtype) for i, g in enumerate(grads) if g is not None}
        masked = [0] if ctx.p and 0 in upstream else []
        for group in filter(None, (masked, [i for i in upstream if i not in masked])):
            with torch.autocast(autocast_device(weights[0]), enabled=False):
                g = _stack([upstream[i] for i in group], 1)  # (N, rows)
                w = _stack([weights[i].to(ctx.dtype) for i in group], 0)  # (rows, in)
                kept = None
                if group is masked:
                    g = g / keep_probability(ctx.p)
                    kept = kept_entries(g.new_empty(g.shape[0], w.shape[1]), ctx.p, ctx.seed)
                if need_x:
                    g_x = g @ w if g_x is None else g_x.addmm_(g, w)
                    g_x = g_x if kept is None else g_x.mul_(kept)  # the masked group is the first
                if any(need_w[i] for i in group):
                    seen = x.to(ctx.dtype)
                    stacked = g.T @ (seen if kept is None else kept.mul_(seen))  # (rows, in)
                    for i, part in zip(group, _parts(stacked, [len(weights[i]) for i in group], 0), strict=True):
                        g_w[i] = part.to(weights[i].dtype) if need_w[i] else None
        return None if g_x is None else g_x.to(ctx.x_dtype), *g_w, None, None


def _stack(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _parts(stacked: Tensor, sizes: list[int], dim: int) -> Sequence[Tensor]:
    return [stacked] if len(sizes) == 1 else stacked.split(sizes, dim)


def project(
    x: Tensor, w_dropped: Tensor, w_plain: Tensor | None, w_exact: Tensor | None, p: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Products of the input with stacked rows of small matrices, one of them behind dropout.

    Args:
        x: (N, in), any floating dtype.
        w_dropped: (rows, in), sees inverted dropout of x; None of the three needs the dtype of x.
        w_plain: (rows, in), sees x; or None.
        w_exact: (rows, in), sees x and is multiplied in float32 or wider; or None.
        p: dropout probability, 0 outside training.
        dtype: of the first two products, and of all three in the backward.

    Returns:
        The three products (N, rows), None where there is no matrix; the third in float32 or wider.
    """
    if not torch.compiler.is_compiling():
        if not p and x.dtype == dtype and w_plain is None and w_exact is None:
            # autograd's own node saves x itself here and is the cheaper one
            return F.linear(x, w_dropped.to(dtype)), None, None
        return _Project.apply(x, w_dropped, w_plain, w_exact, p, dtype)
    # the compiler plans saved tensors and dropout masks itself, and knows no generators
    cast, exact_dtype = x.to(dtype), torch.promote_types(dtype, torch.float32)
    return (
        F.linear(F.dropout(cast, p), w_dropped.to(dtype)),
        None if w_plain is None else F.linear(cast, w_plain.to(dtype)),
        None if w_exact is None else F.linear(x.to(exact_dtype), w_exact.to(exact_dtype)),
    )
