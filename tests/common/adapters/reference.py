"""The methods of our tuner in float64, transcribed from their papers token by token and expert by expert.

It shares no code with the package, and computes no faster than it must. Weights come as a dictionary with the
names W0, bias, A, B, mixer, router, threshold, threshold_bias, sigma, U, V, A0 and B0.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]

TOPK = ("molora", "goat", "goat_plus", "goat_principal", "goat_minor", "goat_random")
FROM_SEGMENTS = ("goat", "goat_plus", "goat_principal", "goat_minor", "goat_random", "goat_single")


@dataclass(frozen=True)
class Setting:
    """What a paper leaves to the user: total rank r, α, number of experts E, chosen experts k, ρ."""

    r: int = 8
    alpha: float = 16.0
    experts: int = 4
    k: int = 2
    rho: float = 10.0

    @property
    def d(self) -> int:
        """Rank of one expert."""
        return self.r // self.experts


def scalings(method: str, w0: Tensor, at: Setting) -> list[float]:
    """s of every expert or segment, or of the whole update where there is one."""
    if method in FROM_SEGMENTS:
        s = math.sqrt(3 * w0.shape[1] / at.r)  # [G] Theorem 3.5, η = 1
        if method != "goat_plus":
            return [s] * at.experts
        sigma = torch.linalg.svdvals(w0)
        sums = [sigma[start : start + at.d].sum().item() for start in segment_starts(method, w0, at)]
        return [s * math.sqrt(sums[0] / each) for each in sums]  # [G] eq. 83
    if method in ("molora", "hydralora", "adamole"):  # their r is that of one expert
        return [at.alpha / at.d] * at.experts
    return [at.alpha / at.r]


def segment_starts(method: str, w0: Tensor, at: Setting) -> list[int]:
    """Index of the first singular triplet of every expert's segment, 0 the largest; [G] eq. 13 and E.3."""
    h = min(w0.shape)
    if method == "goat_principal":
        return [j * at.d for j in range(at.experts)]
    if method == "goat_minor":
        return [h - (j + 1) * at.d for j in range(at.experts)]
    return [j * (h // at.experts) for j in range(at.experts)]


def start_product(method: str, w0: Tensor, at: Setting) -> list[Tensor]:
    """B0ʲA0ʲ of every segment (the signs of the factors are free), (out, in) each, by an ordinary SVD."""
    u, sigma, vt = torch.linalg.svd(w0, full_matrices=False)

    def part(start: int, width: int) -> Tensor:
        return sum(sigma[i] * torch.outer(u[:, i], vt[i]) for i in range(start, start + width))

    if method == "pissa":  # B = U·√Σ, A = √Σ·Vᵀ of the largest r with the scaling taken out, as PEFT does
        return [part(0, at.r) / (at.alpha / at.r)]
    if method in ("milora", "kasa"):  # KaSA starts elsewhere, and takes these away for good
        return [part(min(w0.shape) - at.r, at.r) / (at.alpha / at.r)]
    starts = segment_starts(method, w0, at)
    return [
        part(start, at.d) / (s * at.rho) for start, s in zip(starts, scalings(method, w0, at), strict=True)
    ]  # [G] eq. 14


def routing(method: str, w: Weights, token: Tensor, at: Setting) -> tuple[list[Tensor | float], list[int], Tensor]:
    """Every expert's weight for a token, the chosen experts, and the softmax over all of them."""
    z = w["router"] @ token
    p = z.exp() / z.exp().sum()
    if method == "hydralora":  # Tian et al., eq. 5 and 6: all heads
        return list(p), list(range(at.experts)), p
    if method == "adamole":  # Liu and Luo: τ = τmax·σ(W_τ·x + b_τ), τmax = 1/E
        tau = 1 / at.experts / (1 + (-(w["threshold"][0] @ token + w["threshold_bias"][0])).exp())
        chosen = [i for i in range(at.experts) if p[i] >= tau]
        total = sum(p[i] - tau for i in chosen)
        return [(p[i] - tau) / total if i in chosen else 0.0 for i in range(at.experts)], chosen, p
    chosen = sorted(range(at.experts), key=lambda i: -z[i].item())[: at.k]
    total = sum(z[i].exp() for i in chosen)  # [G] eq. 10
    return [z[i].exp() / total if i in chosen else 0.0 for i in range(at.experts)], chosen, p


def unrouted_update(method: str, w: Weights, token: Tensor, at: Setting) -> Tensor:
    """s·B·M·A·x - s·B0·A0·x for a token, (out,); B0·A0 is the start, in KaSA the noise that is taken out of W0."""
    s, half = scalings(method, w["W0"].detach(), at)[0], at.r // 2
    if method in ("moslora", "flora"):  # [M] eq. 7; Si et al. with the core G for M
        return s * (w["B"] @ (w["mixer"] @ (w["A"] @ token)))
    if method == "ts_mixing":  # [M] eq. 6: every subspace of B with every one of A
        halves = (slice(0, half), slice(half, at.r))
        return s * sum(w["B"][:, b] @ (w["A"][a] @ token) for b in halves for a in halves)
    h = w["A"] @ token
    update = s * (w["B"] @ (w["mixer"] * h if method == "kasa" else h))  # Wang et al., KaSA
    if method == "lora_dash":  # Si et al., LoRA-Dash: + Σ Δσᵢ·uᵢ·vᵢᵀ
        for i in range(len(w["sigma"])):
            update = update + w["sigma"][i] * w["U"][:, i] * (w["V"][i] @ token)
    return update - s * (w["B0"] @ (w["A0"] @ token)) if "A0" in w else update


def routed_update(method: str, w: Weights, token: Tensor, at: Setting, weights: list[Tensor | float]) -> Tensor:
    """Σ sᵢwᵢBᵢAᵢ·x - (sᵢ/E)·Σ B0ⁱA0ⁱ·x for a token, (out,)."""
    update = torch.zeros(w["W0"].shape[0], dtype=torch.float64)
    for i, s in enumerate(scalings(method, w["W0"].detach(), at)):
        block = slice(i * at.d, (i + 1) * at.d)
        a = w["A"] if method == "hydralora" else w["A"][block]
        update = update + s * weights[i] * (w["B"][:, block] @ (a @ token))
        if "A0" in w:  # [G] eq. 15
            update = update - s / at.experts * (w["B0"][:, block] @ (w["A0"][block] @ token))
    return update


def forward(method: str, w: Weights, x: Tensor, at: Setting) -> tuple[Tensor, Tensor, list[list[int]]]:
    """The adapted layer.

    Args:
        method: a name in `common.adapters.METHODS`.
        w: the weights.
        x: (T, in) float64.
        at: the user's settings.

    Returns:
        Outputs (T, out); the balance loss with its coefficient left out, 0 where the paper has none; the chosen
        experts of every token.
    """
    outputs, probabilities, chosen = [], [], []
    for token in x:
        y = w["W0"] @ token + w["bias"]
        if "router" in w:
            weights, experts, p = routing(method, w, token, at)
            y = y + routed_update(method, w, token, at, weights)
            probabilities.append(p)
            chosen.append(experts)
        else:
            y = y + unrouted_update(method, w, token, at)
        outputs.append(y)
    loss = torch.zeros((), dtype=torch.float64)
    if method in TOPK or method == "adamole":
        k = at.k if method in TOPK else 1  # [G] eq. 26; AdaMoLE takes the Switch Transformer's loss
        for i in range(at.experts):
            count = sum(i in experts for experts in chosen)
            loss = loss + at.experts / (k * len(x)) * count * torch.stack(probabilities)[:, i].mean()
    return torch.stack(outputs), loss, chosen
