"""Top-k routing of tokens to experts, the balance loss, and the record a layer keeps of its last forward.

Dimension letters: N tokens, E experts, k chosen experts of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def expert_counts(chosen: Tensor, num_experts: int, mask: Tensor | None = None) -> Tensor:
    """How many tokens chose each expert.

    Args:
        chosen: (..., N, k) int64.
        num_experts: E.
        mask: (N,) bool, the tokens that count; None: all.

    Returns:
        (..., E) int64.
    """
    # no bincount: it synchronises with the device and breaks compiled graphs
    hits = chosen.unsqueeze(-1) == torch.arange(num_experts, device=chosen.device)  # (..., N, k, E)
    if mask is not None:
        hits = hits & mask[:, None, None]
    return hits.sum((-3, -2))


def load_balance(logits: Tensor, chosen: Tensor, mask: Tensor | None = None) -> Tensor:
    """Balance loss of [G] eq. 26-28: L = Σ fᵢ·Pᵢ with fᵢ = E/(kT)·count and Pᵢ the mean softmax; 1 when balanced.

    Args:
        logits: (..., N, E) float32.
        chosen: (..., N, k) int64.
        mask: (N,) bool, the tokens that count; None: all.

    Returns:
        (...) float32, differentiable through Pᵢ.
    """
    num_experts, top_k = logits.shape[-1], chosen.shape[-1]
    probabilities = logits.softmax(-1)
    if mask is None:
        tokens: Tensor | int = max(logits.shape[-2], 1)  # no token: no loss rather than NaN
        mean = probabilities.sum(-2) / tokens
    else:
        tokens = mask.sum().clamp_min(1)
        mean = (probabilities * mask[:, None]).sum(-2) / tokens
    frequency = expert_counts(chosen, num_experts, mask) * (num_experts / (top_k * tokens))
    return (frequency * mean).sum(-1)


class RoutingRecord:
    """What a routed layer remembers of its forward passes; not part of its state.

    A deep copy or a pickle of it is empty, for the tensors inside belong to an autograd graph.

    Attributes:
        logits: (N, E) of the last forward in training, with its graph; None after any other forward.
        chosen: (N, k) of the same forward.
        token_mask: (N,) bool, the tokens that count; None: all.
        load: (E,) int64, how often each expert was chosen in evaluation since the last reset.
    """

    def __init__(self) -> None:
        self.logits: Tensor | None = None
        self.chosen: Tensor | None = None
        self.token_mask: Tensor | None = None
        self.load: Tensor | None = None

    def __reduce__(self) -> tuple[type[RoutingRecord], tuple[()]]:
        return RoutingRecord, ()

    def keep(self, logits: Tensor, chosen: Tensor, training: bool) -> None:
        """Note a forward pass: for the balance loss in training, as load in evaluation."""
        if _recomputing():
            # gradient checkpointing runs the forward again inside the backward; a second graph kept here would
            # hold every recomputed activation in memory
            return
        if training and torch.is_grad_enabled():
            self.logits, self.chosen = logits, chosen
            return
        self.logits = self.chosen = None
        if not training:
            counts = expert_counts(chosen, logits.shape[-1], self.mask_for(chosen.shape[0]))
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
