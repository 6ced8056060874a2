"""What a trained model answers to some questions of its own data."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import nn

from common.pictures import DecodeError
from common.reporting.samples import Sample, Samples
from common.training import processes
from common.training.sharding import gathered
from llava.conversation import Turn
from llava.data import Conversations, LlavaData
from llava.data.pictures import load_picture
from llava.data.rules import turns_of
from llava.generation import generate
from llava.model_base import LlavaBase

SHOWN, MAX_NEW_TOKENS = 8, 64
_SHORT = 3  # words of an expected answer that another wording is not an answer to


class _Asked(NamedTuple):
    turns: list[Turn]  # up to the question
    expected: str
    image: Image.Image | None


def answered_questions(base: LlavaBase, objective: nn.Module, data: LlavaData, *, seed: int) -> Samples:
    """Greedy answers to questions of the validation conversations, or else of the training's; a collective call.

    Every process answers all of them, as one alone could not where the weights are divided.

    Args:
        base: the trained model.
        objective: it was trained as.
        data: of the run.
        seed: of the lot that draws the questions.
    """
    conversations = data.train if data.validation is None else data.validation
    asked = processes.on_main(lambda: _draw(base, conversations, seed))
    prompts = [base.prompt(each.turns) for each in asked]
    with gathered(objective):
        answers = generate(base, prompts, [each.image for each in asked], max_new_tokens=MAX_NEW_TOKENS)
    items = [
        Sample(each.image, each.turns[-1].text, answer, each.expected, is_right(answer, each.expected))
        for each, answer in zip(asked, answers, strict=True)
    ]
    source = "the training conversations: they were seen" if data.validation is None else "the validation conversations"
    about = (
        f"Greedy answers to {len(items)} questions drawn by lot (seed {seed}) from {source}; cut at {MAX_NEW_TOKENS} "
        f"tokens. Where at most {_SHORT} words are expected, another wording counts as wrong; longer ones are not "
        "judged."
    )
    return Samples("chat", about, items)


def is_right(answer: str, expected: str) -> bool | None:
    """Whether an answer is the expected one but for case and punctuation; None where more than a few words are."""
    said, wanted = (re.findall(r"\w+", text.lower()) for text in (answer, expected))
    if said == wanted:
        return True
    return False if 0 < len(wanted) <= _SHORT else None


def _draw(base: LlavaBase, conversations: Conversations, seed: int) -> list[_Asked]:
    found: list[_Asked] = []
    # a longer question than any that was trained on might not fit, and would take the finished run with it
    longest = conversations.coding.max_text_tokens + base.image_tokens
    for index in np.random.default_rng(seed).permutation(len(conversations)):
        if len(found) == SHOWN:
            break
        row, sees = conversations.row(int(index)), bool(conversations.has_image[index])
        turns = turns_of(row.texts, row.image_turn if sees else -1)
        last = row.image_turn if sees else 0
        if len(base.prompt(turns[: last + 1])) > longest:
            continue
        picture = conversations.picture(int(index)) if sees else None
        try:
            image = None if picture is None else load_picture(str(conversations.root), picture)
        except DecodeError as error:  # it was there when the training began
            processes.say(f"not shown among the samples: {conversations.describe(int(index))}: {error}")
            continue
        found.append(_Asked(turns[: last + 1], turns[last + 1].text, image))
    return found
