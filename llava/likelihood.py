"""Rank given answers by the model's log-likelihood, for models too small, or too little tuned, to name a letter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from common.training.order import IGNORED_LABEL
from llava.conversation import Encoded, Turn, encode
from llava.model import LlavaBase


@dataclass(frozen=True)
class Choice:
    """A question with the answers it may have.

    Args:
        question: text, without the mark of the picture.
        options: two or more answers.
        image: the picture; None: a question about text alone.
    """

    question: str
    options: Sequence[str]
    image: Image.Image | None = None


@dataclass(frozen=True)
class OptionScore:
    """How likely the model finds one answer.

    Args:
        total: sum of the log-probabilities of the answer's tokens and the token that ends it, in nats.
        tokens: how many tokens these are.
    """

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Log-probability per token, which does not favour short answers."""
        return self.total / self.tokens


def score_options(
    base: LlavaBase,
    choices: Sequence[Choice],
    *,
    batch_size: int = 16,
    description: str = "scoring",
    show_progress: bool = True,
) -> list[list[OptionScore]]:
    """Score every option of every question.

    Args:
        base: the model; its mode (train or eval) is restored.
        choices: the questions.
        batch_size: questions at once; each takes as many rows as it has options.
        description: in front of the progress bar.
        show_progress: whether there is one on a terminal.

    Returns:
        For each question one score for each option, in their order.
    """
    found: list[list[OptionScore]] = []
    with (
        tqdm(total=len(choices), desc=description, leave=False, disable=None if show_progress else True) as bar,
        base.answering(),
    ):
        for first in range(0, len(choices), batch_size):
            part = choices[first : first + batch_size]
            scores = iter(_score_rows(base, _rows(base, part), _pictures(base, part)))
            found += [[next(scores) for _ in choice.options] for choice in part]
            bar.update(len(part))
    return found


def _rows(base: LlavaBase, choices: Sequence[Choice]) -> list[Encoded]:
    rows = []
    for choice in choices:
        for option in choice.options:
            turns = [Turn("human", choice.question, image=choice.image is not None), Turn("gpt", option)]
            row = encode(
                turns,
                base.wording,
                base.tokenizer,
                image_token_id=base.image_token_id,
                image_tokens=base.image_tokens,
                max_text_tokens=2**31,
            )
            assert row is not None, "there is no limit that an answer could exceed"
            rows.append(row)
    return rows


def _pictures(base: LlavaBase, choices: Sequence[Choice]) -> Tensor | None:
    """(I, 3, S, S), each picture once for every option of its question; None if there are none."""
    seen = [(choice.image, len(choice.options)) for choice in choices if choice.image is not None]
    if not seen:
        return None
    counts = torch.tensor([count for _, count in seen], device=base.device)
    return base.pixels([image for image, _ in seen]).repeat_interleave(counts, dim=0)


def _score_rows(base: LlavaBase, rows: Sequence[Encoded], pixel_values: Tensor | None) -> Iterator[OptionScore]:
    width = max(len(row.input_ids) for row in rows)
    pad = base.tokenizer.pad_token_id

    def padded(ids: list[int], filler: int) -> list[int]:
        return ids + [filler] * (width - len(ids))

    input_ids = torch.tensor([padded(row.input_ids, pad) for row in rows], device=base.device)  # (B, T)
    labels = torch.tensor([padded(row.labels, IGNORED_LABEL) for row in rows], device=base.device)[:, 1:]
    mask = torch.tensor([padded([1] * len(row.input_ids), 0) for row in rows], device=base.device)
    llava = base.llava()
    hidden = llava.model(
        input_ids=input_ids, attention_mask=mask, pixel_values=pixel_values, use_cache=False
    ).last_hidden_state
    scored = labels != IGNORED_LABEL
    log_probabilities = llava.lm_head(hidden[:, :-1][scored]).float().log_softmax(-1)  # (N, V)
    values = log_probabilities.gather(-1, labels[scored].unsqueeze(-1)).squeeze(-1)
    row_of = scored.nonzero()[:, 0]
    totals = torch.zeros(len(rows), device=base.device).index_add_(0, row_of, values)
    for total, count in zip(totals.tolist(), scored.sum(-1).tolist(), strict=True):
        yield OptionScore(total, count)
