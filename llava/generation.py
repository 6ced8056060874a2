"""Answers of a LLaVA model: greedy, in batches, with or without pictures, as they come if need be.

`llava.generation_shared` gives the same answers to many questions about few pictures in less time.

B prompts in a batch, T tokens, I pictures in a batch, S picture size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from llava.model_base import LlavaBase


def generate(
    base: LlavaBase,
    prompts: Sequence[Sequence[int]],
    images: Sequence[Image.Image | None],
    *,
    max_new_tokens: int = 512,
    batch_size: int = 8,
    on_text: Callable[[str], None] | None = None,
) -> list[str]:
    """The model's likeliest answers, token by token.

    An answer does not depend on what else is in its batch, up to rounding. Prompts of like length next to each other
    waste the least.

    Args:
        base: from `load_model` or `load_run`.
        prompts: token ids, from `LlavaBase.prompt`.
        images: for each prompt its picture, or None where it has no picture tokens.
        max_new_tokens: an answer is cut there.
        batch_size: prompts at once.
        on_text: called with each new piece of the answer; for one prompt only.

    Returns:
        For each prompt its answer, without special tokens and without white space around it.
    """
    assert len(prompts) == len(images), (len(prompts), len(images))
    assert on_text is None or len(prompts) == 1, "only one answer can be streamed"
    for prompt, image in zip(prompts, images, strict=True):
        wanted = 0 if image is None else base.image_tokens
        assert list(prompt).count(base.image_token_id) == wanted, "picture tokens and picture do not go together"
    answers = []
    with base.answering():
        for start in range(0, len(prompts), batch_size):
            chosen = slice(start, start + batch_size)
            answers += _generate_batch(base, prompts[chosen], images[chosen], max_new_tokens, on_text)
    return answers


def _generate_batch(
    base: LlavaBase,
    prompts: Sequence[Sequence[int]],
    images: Sequence[Image.Image | None],
    max_new_tokens: int,
    on_text: Callable[[str], None] | None,
) -> list[str]:
    length = max(len(prompt) for prompt in prompts)
    pad, device = base.tokenizer.pad_token_id, base.device
    # padded on the left: every row's last token is the one that the next follows
    input_ids = torch.tensor([[pad] * (length - len(prompt)) + list(prompt) for prompt in prompts])  # (B, T)
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])  # (B, T)
    inputs = {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}
    pictures = [image for image in images if image is not None]
    if pictures:
        inputs["pixel_values"] = base.pixels(pictures)  # (I, 3, S, S)
    stops = base.stops()
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        pad_token_id=pad,
        bos_token_id=base.tokenizer.bos_token_id,
        suppress_tokens=[base.image_token_id],  # a picture is no answer
    )
    streamer = None if on_text is None else _Pieces(base, stops, on_text)
    # positions are counted over the mask, so that padding moves nothing
    tokens = base.llava().generate(**inputs, generation_config=config, streamer=streamer)
    return [text_of(base, row, stops) for row in tokens[:, length:].tolist()]


def text_of(base: LlavaBase, tokens: list[int], stops: list[int]) -> str:
    """Tokens of an answer up to the first that ends it, as text without special tokens and white space around it."""
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return base.tokenizer.decode(tokens[:end], skip_special_tokens=True).strip()


class _Pieces:
    """Hands on what each new token adds to the text; transformers calls `put` and `end`."""

    def __init__(self, base: LlavaBase, stops: list[int], on_text: Callable[[str], None]) -> None:
        self._base, self._stops, self._on_text = base, stops, on_text
        self._tokens: list[int] | None = None
        self._shown = ""

    def put(self, value: Tensor) -> None:
        """Take the prompt (1, T), and then token after token (1,)."""
        if self._tokens is None:
            self._tokens = []
            return
        self._tokens += value.tolist()
        self._show(text_of(self._base, self._tokens, self._stops), final=False)

    def end(self) -> None:
        """Hand on what was held back."""
        self._show(text_of(self._base, self._tokens or [], self._stops), final=True)

    def _show(self, text: str, *, final: bool) -> None:
        # a replacement character at the end is a letter whose other bytes are in the tokens to come
        if len(text) > len(self._shown) and (final or not text.endswith("\ufffd")):
            self._on_text(text[len(self._shown) :])
            self._shown = text
