"""Greedy answers to many questions about few pictures: each picture is read once for all its questions in a batch.

`mosgoat eval vlm` answers with it. A question of MMBench is asked once per rotation of its options, and 576 of some
650 tokens of its prompt are its picture's. What stands before the question is the same for all rotations: its keys and
values are computed once and copied. The answers are those of `llava.generation.generate`, up to rounding.

B questions in a batch, U pictures among them, P tokens up to the end of the picture, T tokens of the longest question.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from llava.generation import text_of
from llava.model_base import LlavaBase


class Said(NamedTuple):
    """An answer.

    Args:
        text: without special tokens and without white space around it.
        cut: whether it was not at its end at the largest number of tokens.
    """

    text: str
    cut: bool


def generate_shared(
    base: LlavaBase,
    prompts: Sequence[Sequence[int]],
    images: Sequence[Image.Image],
    keys: Sequence[Hashable],
    *,
    max_new_tokens: int,
) -> list[Said]:
    """The model's likeliest answers to one batch, token by token.

    Args:
        base: the model.
        prompts: token ids, each with the tokens of its picture.
        images: for each prompt its picture.
        keys: for each prompt what tells its picture from others; prompts with the same are about one picture.
        max_new_tokens: an answer is cut there.

    Returns:
        For each prompt its answer.
    """
    length = _end_of_picture(prompts, base.image_token_id)
    if length is None:  # they begin in different ways
        single = [
            generate_shared(base, prompts[i : i + 1], images[i : i + 1], keys[i : i + 1], max_new_tokens=max_new_tokens)
            for i in range(len(prompts))
        ]
        return [said for [said] in single]
    with base.answering():
        return _generate(base, prompts, images, keys, length, max_new_tokens)


def _end_of_picture(prompts: Sequence[Sequence[int]], image_token_id: int) -> int | None:
    """P, where all prompts begin with the same P tokens; None where they do not."""
    first = list(prompts[0])
    length = len(first) - first[::-1].index(image_token_id)
    assert all(len(prompt) > length for prompt in prompts), "a template ends with words"
    return length if all(list(prompt[:length]) == first[:length] for prompt in prompts) else None


def _generate(
    base: LlavaBase,
    prompts: Sequence[Sequence[int]],
    images: Sequence[Image.Image],
    keys: Sequence[Hashable],
    length: int,
    max_new_tokens: int,
) -> list[Said]:
    llava, device, pad = base.llava(), base.device, base.tokenizer.pad_token_id
    of_key = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    first = {key: keys.index(key) for key in of_key}
    pixel_values = base.pixels([images[at] for at in first.values()])  # (U, 3, S, S)
    prefix = torch.tensor([list(prompts[0][:length])] * len(of_key), device=device)  # (U, P)
    cache = llava.model(input_ids=prefix, pixel_values=pixel_values, use_cache=True).past_key_values
    cache.batch_select_indices(torch.tensor([of_key[key] for key in keys], device=device))

    rests = [list(prompt[length:]) for prompt in prompts]
    width = max(map(len, rests))
    # padded on the left of the question: every row's last token is the one that the next follows
    ids = torch.tensor([[pad] * (width - len(rest)) + rest for rest in rests], device=device)  # (B, T)
    mask = torch.tensor([[1] * length + [0] * (width - len(rest)) + [1] * len(rest) for rest in rests], device=device)
    positions = (mask.cumsum(-1) - 1)[:, length:]  # (B, T); those of the padding are never looked at
    stops = base.stops()
    ends = torch.tensor(stops, device=device)
    going = torch.ones(len(prompts), dtype=torch.bool, device=device)
    said: list[Tensor] = []
    while True:
        hidden = llava.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        logits = llava.lm_head(hidden[:, -1]).float()  # (B, V)
        logits[:, base.image_token_id] = -torch.inf  # a picture is no answer
        token = torch.where(going, logits.argmax(-1), pad)
        said.append(token)
        going = going & ~torch.isin(token, ends)
        if len(said) == max_new_tokens or not going.any():
            break
        ids, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], -1)
    tokens = torch.stack(said, -1).tolist()  # B rows
    return [Said(text_of(base, row, stops), cut) for row, cut in zip(tokens, going.tolist(), strict=True)]
