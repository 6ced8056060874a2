"""Start values of A, B and the mixer.

Dimension letters: r total rank, d = r/E rank of one of E experts, h = min(in, out).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import UserError

# Below this share of the largest singular value the vectors are found again, among themselves: a float64 Gram
# matrix, which squares the ratio, knows σ = 1e-3·σmax to ten digits but σ = 1e-8·σmax not at all.
_RESOLVED = 1e-3


def svd_segments(weight: Tensor, starts: list[int], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Segments of the singular value decomposition W = U · diag(σ) · Vᵀ with σ descending.

    The decomposition comes from the eigenvectors of the float64 Gram matrix of the smaller side, those of its
    small eigenvalues from the Gram matrix of what W does to them: faster than `torch.linalg.svd`, and close to it
    in float64 (`benchmarks/svd.py`): a segment errs by 1e-10 at σ = 1e-4·σmax, by 1e-7 at σ = 1e-7·σmax, where
    a float32 weight ends in rounding, and by 1e-5 at σ = 1e-9·σmax. A float32 decomposition loses the tail
    segments. Only the asked-for vectors of the larger side are made.

    Args:
        weight: W, (out, in), any real dtype, finite, on the device that is to do the work.
        starts: index of the first triplet of each of E segments, 0 is the largest singular value.
        width: d, number of triplets of a segment.

    Returns:
        U (out, E·d), σ (E·d,), V (in, E·d), float64, segments side by side in the order of `starts`.
    """
    w = weight.detach().to(torch.float64)
    tall = w.shape[0] >= w.shape[1]
    small = w if tall else w.T  # (large, h)
    vectors = _right_vectors(small, max(starts) + width)
    inner = torch.cat([vectors[:, start : start + width] for start in starts], dim=1)  # (h, E·d)
    outer = small @ inner  # (large, E·d) = σ times the other side's vectors
    sigma = outer.norm(dim=0)
    # a rank-deficient weight has σ = 0 in its tail: such a triplet stays zero and must not become NaN
    outer = outer / sigma.clamp_min(torch.finfo(torch.float64).tiny)
    return (outer, sigma, inner) if tall else (inner, sigma, outer)


def _right_vectors(w: Tensor, needed: int) -> Tensor:
    """Right singular vectors (h, h) of W (large, h) float64, σ descending; accurate are the first `needed`."""
    found: list[Tensor] = []
    rest = torch.eye(w.shape[1], dtype=w.dtype, device=w.device)  # (h, t) spans the vectors not found yet
    noise = 0.0
    while True:
        part = w if not found else w @ rest  # (large, t)
        squares, vectors = torch.linalg.eigh(part.T @ part)
        squares, vectors = squares.flip(-1), vectors.flip(-1)
        vectors = vectors if not found else rest @ vectors  # (h, t)
        largest = float(squares[0])
        noise = noise or 1e-28 * largest  # what rounding leaves of a zero in float64, squared
        resolved = int((squares > _RESOLVED**2 * largest).sum())
        if resolved >= needed or resolved == len(squares) or largest <= noise:
            return torch.cat([*found, vectors], dim=1)
        found.append(vectors[:, :resolved])
        rest, needed = vectors[:, resolved:], needed - resolved


def segment_starts(rule: str, smaller_side: int, num_experts: int, width: int) -> list[int]:
    """Where the segment of each expert begins: [G] eq. 13 for `spread`, [G] E.3 for the others.

    Args:
        rule: `spread`, `principal`, `minor` or `random` (segments that do not overlap, from torch's CPU generator).
        smaller_side: h, the number of singular values.
        num_experts: E.
        width: d.

    Returns:
        E indices in [0, h - d].
    """
    experts = range(num_experts)
    if rule == "spread":
        return [j * (smaller_side // num_experts) for j in experts]
    if rule == "principal":
        return [j * width for j in experts]
    if rule == "minor":
        return [smaller_side - (j + 1) * width for j in experts]
    assert rule == "random", rule
    return [width * int(j) for j in torch.randperm(smaller_side // width, device="cpu")[:num_experts]]


@dataclass(frozen=True)
class SvdStart:
    """Start values from the singular value decomposition.

    Args:
        a0: (r, in) float32, experts stacked as rows.
        b0: (out, r) float32, experts stacked as columns.
        segment_scale: (E,) float32, sᵢ/s of GOAT+; ones otherwise.
    """

    a0: Tensor
    b0: Tensor
    segment_scale: Tensor


def svd_start(
    weight: Tensor, *, rule: str, r: int, num_experts: int, scaling: float, rho: float, plus: bool
) -> SvdStart:
    """Start of GOAT: B0 = √(1/(sρ))·U·Σ^½, A0 = √(1/(sρ))·Σ^½·Vᵀ for every expert's segment.

    Args:
        weight: W0 (out, in).
        rule: where the segments begin, see `segment_starts`.
        r: total rank.
        num_experts: E.
        scaling: s (s₁ for GOAT+).
        rho: ρ.
        plus: GOAT+: sᵢ = s₁·√(Σσ₁/Σσᵢ), [G] eq. 83.

    Returns:
        The start values; B0ⁱA0ⁱ is unique, the signs of its factors are not.
    """
    width = r // num_experts
    u, sigma, v = svd_segments(weight, segment_starts(rule, min(weight.shape), num_experts, width), width)
    energy = sigma.view(num_experts, width).sum(-1)  # Σσ of each segment
    relative = torch.ones_like(energy)
    if plus:
        # a segment of rounding noise, in a rank-deficient weight, would get a scaling without bound
        sound = energy > 1e-10 * energy.max()
        relative = torch.where(sound, energy[0] / energy, 1.0).sqrt()
    factor = (sigma / (scaling * rho * relative.repeat_interleave(width))).sqrt()  # (r,)
    return SvdStart((v * factor).T.float().contiguous(), (u * factor).float().contiguous(), relative.float())


def random_a(rule: str, rows: int, in_features: int) -> Tensor:
    """Start of A (rows, in) on the CPU.

    Args:
        rule: `kaiming`: uniform with a=√5 as in LoRA; `gaussian`: std 1/rows; `gaussian_b`: zero;
            `kaiming_both`: std 1/√(2·rows), Kaiming-normal with a=√3 over the rank as FLoRA's released code has it.
        rows: r, or d where experts share one A.
        in_features: of the layer.
    """
    a = torch.empty(rows, in_features, device="cpu", dtype=torch.float32)
    if rule == "gaussian":
        return nn.init.normal_(a, std=1 / rows)
    if rule == "gaussian_b":
        return nn.init.zeros_(a)
    if rule == "kaiming_both":
        return nn.init.normal_(a, std=(2 * rows) ** -0.5)
    assert rule == "kaiming", rule
    return nn.init.kaiming_uniform_(a, a=math.sqrt(5))


def random_b(rule: str, out_features: int, r: int) -> Tensor:
    """Start of B (out, r) on the CPU: zero but for `gaussian_b` (std 1/√out) and `kaiming_both` (std 1/√(2r))."""
    b = torch.zeros(out_features, r, device="cpu", dtype=torch.float32)
    if rule == "gaussian_b":
        return nn.init.normal_(b, std=out_features**-0.5)
    return nn.init.normal_(b, std=(2 * r) ** -0.5) if rule == "kaiming_both" else b


def mixer_start(rule: str, r: int) -> Tensor:
    """Start of a dense mixer M (r, r) on the CPU."""
    m = torch.empty(r, r, device="cpu", dtype=torch.float32)
    if rule == "kaiming":
        return nn.init.kaiming_uniform_(m, a=math.sqrt(5))
    if rule == "orthogonal":
        return nn.init.orthogonal_(m)
    if rule == "normal":
        return nn.init.normal_(m, std=1 / math.sqrt(r))
    if rule == "identity":
        return nn.init.eye_(m)
    assert rule == "zero", rule
    return nn.init.zeros_(m)


def require_fitting_rank(r: int, in_features: int, out_features: int, layer: str, key: str = "r") -> None:
    """Raise `UserError` if a layer is smaller than its adapter's rank, which `key` names."""
    if r > min(in_features, out_features):
        raise UserError(
            f"{key}={r} is larger than the smaller side of layer {layer} ({in_features} -> {out_features}); "
            f"use {key} <= {min(in_features, out_features)} or give this layer its own rank with rank_pattern"
        )


def require_finite(weight: Tensor, layer: str) -> Tensor:
    """Give `weight` back, or raise `UserError` if it cannot be decomposed."""
    if not torch.isfinite(weight).all():
        raise UserError(
            f"the weight of layer {layer} has values that are not finite (NaN or infinite), so no singular values to "
            "start the adapter from; load the base model again, in float32 or bfloat16 if it was cast to float16"
        )
    return weight
