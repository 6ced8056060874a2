"""Prompts → what the UNet is told of them.

B prompts, T text tokens (77), D width of both encoders' states side by side, P width of the pooled embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dreambooth.model_base import SdxlBase


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts.

    Args:
        embeds: (B, T, D), of the encoders' last layer but one.
        pooled: (B, P), of the second encoder.
        truncated: the prompts that were longer than the encoders take, whose end was lost.
    """

    embeds: Tensor
    pooled: Tensor
    truncated: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tokens:
    """Prompts as numbers.

    Args:
        first: (B, T) int64, of the first tokenizer, padded.
        second: (B, T) int64, of the second.
        truncated: the prompts that were longer than T, whose end was lost.
    """

    first: Tensor
    second: Tensor
    truncated: list[str]


def tokenize(base: SdxlBase, prompts: Sequence[str]) -> Tokens:
    """The tokens of prompts, on the CPU."""
    ids, longer = [], set()
    for tokenizer in base.tokenizers:
        length = tokenizer.model_max_length
        whole = tokenizer(list(prompts), truncation=False, verbose=False).input_ids
        longer |= {i for i, each in enumerate(whole) if len(each) > length}
        cut = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids.append(cut.input_ids)
    return Tokens(ids[0], ids[1], [prompts[i] for i in sorted(longer)])


def encode_ids(base: SdxlBase, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (B, T, D) and pooled embeddings (B, P) of tokens (B, T) of the first and the second tokenizer."""
    assert base.text_encoders is not None, "the text encoders have been released"
    states = []
    for encoder, ids in zip(base.text_encoders, (first, second), strict=True):
        out = encoder(ids, output_hidden_states=True)
        states.append(out.hidden_states[-2])
    return torch.cat(states, dim=-1), out.text_embeds


@torch.no_grad()
def encode_prompts(base: SdxlBase, prompts: Sequence[str]) -> Prompts:
    """Embeddings of prompts, in the precision of the text encoders, on their device.

    Args:
        base: with its text encoders.
        prompts: any number; encoded together.
    """
    assert base.text_encoders is not None, "the text encoders have been released"
    tokens, device = tokenize(base, prompts), next(base.text_encoders[0].parameters()).device
    embeds, pooled = encode_ids(base, tokens.first.to(device), tokens.second.to(device))
    return Prompts(embeds, pooled, tokens.truncated)
