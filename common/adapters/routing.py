"""Routing of tokens to experts, the balance loss, and the record a layer keeps of its last forward.

Dimension letters: N tokens, E experts, k chosen experts of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def balance_weight(coef: float | None, top_k: int) -> float:
    """The coefficient of the balance loss: as given, else 1e-3 for each chosen expert.

    So it is in the released code of GOAT, whose loss lacks the 1/k of [G] eq. 26, and (k = 1) of AdaMoLE.
    """
    return top_k * 1e-3 if coef is None else coef


def route(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Routing weights of [G] eq. 10: the k largest logits, softmax over those.

    Equal logits are broken as `torch.topk` does; exactly k experts are chosen always.

    Args:
        logits: (N, E) float32.
        top_k: k.

    Returns:
        Weights (N, E) that sum to 1 per token and are 0 where not chosen, and the chosen experts (N, k) int64.
    """
    top, chosen = logits.topk(top_k, dim=-1)
    return torch.zeros_like(logits).scatter(-1, chosen, top.softmax(-1)), chosen


def route_by_threshold(logits: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Routing weights of AdaMoLE: (pᵢ - τ)₊, scaled to sum 1, with p the softmax and τ = σ(threshold)/E.

    The largest pᵢ is at least 1/E, which is above τ, so that every token has an expert.

    Args:
        logits: (N, E) float32.
        threshold: (N, 1) float32, W_τ·x + b_τ.

    Returns:
        Weights (N, E), and the chosen experts (N, E) bool, those with pᵢ ≥ τ.
    """
    p = logits.softmax(-1)
    above = p - threshold.sigmoid() / logits.shape[-1]  # the paper's τmax = 1/E
    excess = above.clamp_min(0)
    total = excess.sum(-1, keepdim=True)
    # in float32 σ can round to 1; with all pᵢ = 1/E nothing is above τ then: no update rather than NaN
    return excess / torch.where(total > 0, total, 1.0), above >= 0


def expert_counts(chosen: Tensor, num_experts: int, mask: Tensor | None = None) -> Tensor:
    """How many tokens chose each expert.

    Args:
        chosen: (..., N, k) int64, the numbers of the chosen experts; or (..., N, E) bool, true where chosen, or
            floating, each expert's share of a token.
        num_experts: E.
        mask: (N,) bool, the tokens that count; None: all.

    Returns:
        (..., E) int64, or floating where `chosen` is.
    """
    if chosen.dtype != torch.int64:
        return (chosen if mask is None else chosen * mask[:, None]).sum(-2)
    # no bincount: it synchronises with the device and breaks compiled graphs
    hits = chosen.unsqueeze(-1) == torch.arange(num_experts, device=chosen.device)  # (..., N, k, E)
    if mask is not None:
        hits = hits & mask[:, None, None]
    return hits.sum((-3, -2))


def load_balance(logits: Tensor, chosen: Tensor, mask: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
    """Balance loss of [G] eq. 26-28: L = Σ fᵢ·Pᵢ with fᵢ = E/(kT)·count and Pᵢ the mean softmax; 1 when balanced.

    Where the number of chosen experts differs from token to token it is the Switch Transformer's, which AdaMoLE
    takes over: k = 1 in fᵢ, and the mean number of chosen experts when balanced.

    Args:
        logits: (..., N, E) float32.
        chosen: (..., N, k) int64, the numbers of the chosen experts, or (..., N, E) bool, true where chosen.
        mask: (N,) bool, the tokens that count; None: all.
        counts: `expert_counts` of these, where they are known already.

    Returns:
        (...) float32, differentiable through Pᵢ.
    """
    num_experts = logits.shape[-1]
    top_k = chosen.shape[-1] if chosen.dtype == torch.int64 else 1
    probabilities = logits.softmax(-1)
    if mask is None:
        tokens: Tensor | int = max(logits.shape[-2], 1)  # no token: no loss rather than NaN
        mean = probabilities.sum(-2) / tokens
    else:
        tokens = mask.sum().clamp_min(1)
        mean = (probabilities * mask[:, None]).sum(-2) / tokens
    counts = expert_counts(chosen, num_experts, mask) if counts is None else counts
    frequency = counts * (num_experts / (top_k * tokens))
    return (frequency * mean).sum(-1)


class RoutingRecord:
    """What a routed layer remembers of its forward passes; not part of its state.

    A deep copy or a pickle of it is empty, for the tensors inside belong to an autograd graph.

    Attributes:
        logits: (N, E) of the last forward in training, with its graph; None after any other forward, and where the
            method has no balance loss.
        chosen: (N, k) int64 or (N, E) bool of the same forward, see `expert_counts`.
        token_mask: (N,) bool, the tokens that count; None: all.
        load: (E,) int64, how often each expert was chosen in evaluation since the last reset; floating where
            every expert acts on every token: the sum of its routing weights.
    """

    def __init__(self) -> None:
        self.logits: Tensor | None = None
        self.chosen: Tensor | None = None
        self.token_mask: Tensor | None = None
        self.load: Tensor | None = None

    def __reduce__(self) -> tuple[type[RoutingRecord], tuple[()]]:
        return RoutingRecord, ()

    def keep(self, logits: Tensor | None, chosen: Tensor, training: bool) -> None:
        """Note a forward pass: for `balance_and_load` in training, as load in evaluation.

        Args:
            logits: (N, E) float32; None where the method has no balance loss.
            chosen: see `expert_counts`; (N, E) where `logits` is None.
            training: whether the layer is in training mode.
        """
        if _recomputing():
            # gradient checkpointing runs the forward again inside the backward; a second graph kept here would
            # hold every recomputed activation in memory
            return
        if training and torch.is_grad_enabled():
            self.logits, self.chosen = logits, chosen.detach()
            return
        self.logits = self.chosen = None
        if not training:
            num_experts = (chosen if logits is None else logits).shape[-1]
            counts = expert_counts(chosen.detach(), num_experts, self.mask_for(chosen.shape[0]))
            self.load = counts if self.load is None else self.load + counts

    def mask_for(self, tokens: int) -> Tensor | None:
        """The token mask, checked against the number of tokens of the forward it is used for."""
        if self.token_mask is not None and self.token_mask.numel() != tokens:
            raise ValueError(
                f"the token mask has {self.token_mask.numel()} entries but the routed layer saw {tokens} tokens; "
                "set the mask on the sub-model whose layers see these tokens"
            )
        return self.token_mask


def _recomputing() -> bool:
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
