"""Options ranked by log-likelihood."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from llava.config import ModelConfig
from llava.conversation import Turn, encode, template_for
from llava.likelihood import Choice, OptionScore, score_options
from llava.model import LlavaBase, load_model
from tests.llava.tiny import TinyLlava


@pytest.fixture(scope="module")
def base(tiny_llava: TinyLlava) -> LlavaBase:
    return load_model(ModelConfig(name=str(tiny_llava.whole)), template="llama3")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (28, 28, 3), dtype=np.uint8))


def choices() -> list[Choice]:
    return [
        Choice("What is this?", ("a cat", "two dogs on the table", "no"), picture(0)),
        Choice("How many?", ("one", "three")),
        Choice("Which colour?", ("red", "blue", "green", "yellow"), picture(1)),
    ]


def by_hand(base: LlavaBase, choice: Choice, option: str) -> float:
    """log p(option, end of turn | question), one token after the other, with the whole model."""
    turns = [Turn("human", choice.question, image=choice.image is not None), Turn("gpt", option)]
    row = encode(
        turns, template_for("llama3", base.tokenizer), base.tokenizer, image_token_id=base.image_token_id,
        image_tokens=base.image_tokens, max_text_tokens=1000,
    )  # fmt: skip
    assert row is not None
    pixels = None
    if choice.image is not None:
        pixels = base.image_processor([choice.image], return_tensors="pt")["pixel_values"]
    total = 0.0
    for at, label in enumerate(row.labels):
        if label != -100:
            with torch.no_grad():
                logits = base.model(input_ids=torch.tensor([row.input_ids[:at]]), pixel_values=pixels).logits[0, -1]
            total += math.log(logits.double().softmax(-1)[label].item())
    return total


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_are_the_sums_of_the_log_probabilities(base: LlavaBase, batch_size: int) -> None:
    found = score_options(base, choices(), batch_size=batch_size)
    for choice, scores in zip(choices(), found, strict=True):
        assert len(scores) == len(choice.options)
        for option, score in zip(choice.options, scores, strict=True):
            # float32 logits against float64 of the same, over up to ten tokens
            assert score.total == pytest.approx(by_hand(base, choice, option), rel=1e-4)
            assert score.tokens == len(base.tokenizer(option, add_special_tokens=False)["input_ids"]) + 1


def test_the_mean_does_not_favour_short_answers() -> None:
    assert OptionScore(-2.0, 1).mean < OptionScore(-3.0, 3).mean


def test_the_mode_of_the_model_is_restored(base: LlavaBase) -> None:
    base.model.train()
    score_options(base, choices()[1:2])
    assert base.model.training
    base.model.eval()
