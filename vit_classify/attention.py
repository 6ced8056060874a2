"""Attention with separate q, k, v and out projections, so that adapters can be put on each of them.

open_clip's towers use `nn.MultiheadAttention`, which keeps q, k and v in one packed weight and reads the
weight of `out_proj` without calling it: an adapter wrapped around `out_proj` would never run.

Shapes: B batch, L query tokens, S key tokens, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError


class SplitAttention(nn.Module):
    """Multi-head attention as four `nn.Linear` layers around `scaled_dot_product_attention`.

    It is called as open_clip calls `nn.MultiheadAttention(batch_first=True)` and returns the same values.

    Args:
        embed_dim: D, a multiple of `num_heads`.
        num_heads: H.
        bias: whether the four layers have biases.
        device, dtype: of the new weights; the `meta` device makes none.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        assert embed_dim % num_heads == 0, f"width {embed_dim} is not a multiple of {num_heads} heads"
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias, device, dtype)
        self.k_proj = nn.Linear(embed_dim, embed_dim, bias, device, dtype)
        self.v_proj = nn.Linear(embed_dim, embed_dim, bias, device, dtype)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias, device, dtype)

    @classmethod
    def from_packed(cls, packed: nn.MultiheadAttention) -> SplitAttention:
        """The same attention with unpacked weights (copies), on the same device, also on `meta`."""
        assert packed.batch_first, "open_clip's towers are batch first"
        assert packed._qkv_same_embed_dim, "cross attention of other widths has no packed weight"
        assert packed.bias_k is None
        assert not packed.add_zero_attn
        assert packed.dropout == 0
        weight, bias = packed.in_proj_weight, packed.in_proj_bias
        # meta: the layers get their weights below; drawing random ones would cost time and the RNG's state
        split = cls(packed.embed_dim, packed.num_heads, bias is not None, device="meta")
        biases = [None] * 3 if bias is None else bias.chunk(3)
        layers = (split.q_proj, split.k_proj, split.v_proj)
        for layer, rows, shift in zip(layers, weight.chunk(3), biases, strict=True):
            layer.weight = nn.Parameter(rows.detach().clone(), requires_grad=weight.requires_grad)
            if bias is not None and shift is not None:
                layer.bias = nn.Parameter(shift.detach().clone(), requires_grad=bias.requires_grad)
        split.out_proj.weight = packed.out_proj.weight
        split.out_proj.bias = packed.out_proj.bias
        return split.train(packed.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            query: (B, L, D).
            key: (B, S, D).
            value: (B, S, D).
            need_weights: must be False; the weights are never formed.
            attn_mask: (L, S) or (B·H, L, S), added to the logits, or boolean with True where a key is hidden
                (the convention of `nn.MultiheadAttention`).

        Returns:
            (B, L, D), and None in the place of the weights.
        """
        assert not need_weights, "SplitAttention does not form the attention weights"
        q, k, v = (  # (B, H, L or S, D/H)
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = ~attn_mask  # SDPA marks what is seen, nn.MultiheadAttention what is hidden
            if attn_mask.ndim == 3:
                attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask)  # (B, H, L, D/H)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


def split_attention(tower: nn.Module) -> nn.Module:
    """Replace the attention of every residual block of an open_clip vision tower, in place.

    Args:
        tower: `open_clip.transformer.VisionTransformer` with plain residual blocks, on any device.

    Returns:
        The same tower, with the same number of parameters. A layer's output is the same to 5e-7 relative in
        float32; the whole tower's is as far from the exact one as before.

    Raises:
        UserError: the tower is not a plain vision transformer (a ResNet, a timm model, custom blocks).
    """
    transformer = getattr(tower, "transformer", None)
    blocks = getattr(transformer, "resblocks", None)
    if blocks is None or not all(isinstance(getattr(b, "attn", None), nn.MultiheadAttention) for b in blocks):
        raise UserError(
            f"model.name: a {type(tower).__name__} with this kind of attention cannot take adapters here; "
            "choose one of open_clip's own vision transformers, such as ViT-B-32-quickgelu or ViT-L-14"
        )
    for block in blocks:
        block.attn = SplitAttention.from_packed(block.attn)
    assert not any(isinstance(module, nn.MultiheadAttention) for module in tower.modules())
    return tower
