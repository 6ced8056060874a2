"""Conversations → token ids and loss mask, for training and for generation.

A conversation is encoded stretch by stretch (`llava.sections`); the whole is never tokenised and subtracted from.
Supervised are the answers and the token that ends a turn, nothing else.

Truncation, to `max_text_tokens` (picture tokens not counted): whole rounds of question and answer are dropped from the
end. Where the first round alone is too long, its answer is cut; the cut answer has no end-of-turn token, so that the
model does not learn to stop there. Where the question leaves no room for even one token of the answer, there is no
sample. A picture is kept or dropped with its turn, never cut.

Behind a picture, text is tokenised like a text of its own, because LLaVA and XTuner do so: for Vicuna's tokenizer the
picture is followed by `▁`, `\\n`. The chat template that a tokenizer brings (`tokenizer`) is followed to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from types import MappingProxyType
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from common.errors import UserError
from common.training.order import IGNORED_LABEL
from llava.config import TemplateName
from llava.sections import Place, SectionEncoder

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class Turn(NamedTuple):
    """What one side says.

    Args:
        role: `human` or `gpt`, as LLaVA's files call them.
        text: what is said, without the mark of the picture.
        image: whether the picture stands in front of the text.
    """

    role: Literal["human", "gpt"]
    text: str
    image: bool = False


class Encoded(NamedTuple):
    """A conversation as the model sees it.

    Args:
        input_ids: tokens; the picture's place is filled with its token.
        labels: the tokens to be learnt, -100 elsewhere; of the same length.
        has_image: whether the picture's turn was kept.
        rounds: rounds of question and answer that were kept.
        cut: whether the answer was cut.
    """

    input_ids: list[int]
    labels: list[int]
    has_image: bool
    rounds: int
    cut: bool


@dataclass(frozen=True)
class Template:
    """How a conversation becomes text: `opening Q head A end tail`, further rounds with `between` for `tail + opening`.

    Args:
        name: what it is called in recipes.
        tokens: the special tokens within the texts; `end` ends with one of them.
        opening: before the first question.
        head: between a question and its answer, where generation begins.
        answer_prefix: supervised text before each answer.
        end: ends an answer; supervised.
        tail: behind the last `end`; not supervised.
        between: from an `end` to the next question.
        bos: whether the tokenizer's own beginning-of-sequence token, if it has one, comes first.
        strips: whether the ends of questions and answers lose their white space.
        picture_apart: whether text behind a picture is tokenised like a text of its own.
    """

    name: TemplateName
    tokens: tuple[str, ...]
    opening: str
    head: str
    end: str
    tail: str
    between: str
    answer_prefix: str = ""
    bos: bool = False
    strips: bool = False
    picture_apart: bool = True


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        # The end of a turn is the tokenizer's own end of sequence: `</s>` for Vicuna.
        "vicuna_v1": Template(
            "vicuna_v1", (), f"{_VICUNA_SYSTEM} USER: ", " ASSISTANT:", "", "", "USER: ", answer_prefix=" ", bos=True
        ),
        "llama3": Template(
            "llama3",
            ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            opening="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
            head="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            end="<|eot_id|>",
            tail="",
            between="<|start_header_id|>user<|end_header_id|>\n\n",
        ),
        "internlm2": Template(
            "internlm2",
            ("<|im_start|>", "<|im_end|>"),
            opening="<|im_start|>user\n",
            head="<|im_end|>\n<|im_start|>assistant\n",
            end="<|im_end|>",
            tail="\n",
            between="\n<|im_start|>user\n",
            bos=True,
        ),
    }
)


def template_for(name: TemplateName, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template `name` with the special tokens of `tokenizer`.

    Args:
        name: one of `TEMPLATES`, or `tokenizer` for the chat template that the tokenizer brings.
        tokenizer: of the language model.

    Raises:
        UserError: the tokenizer lacks the template's tokens, or has no usable chat template.
    """
    if name == "tokenizer":
        # Imported on use: it needs this module's Template.
        from llava.chat_template import derive_template

        return derive_template(tokenizer)
    template = TEMPLATES[name]
    if name == "vicuna_v1":
        if not isinstance(tokenizer.eos_token, str):
            raise UserError(f"data.template={name} ends an answer with the tokenizer's eos_token, and it has none")
        template = replace(template, tokens=(tokenizer.eos_token,), end=tokenizer.eos_token)
    missing = [token for token in template.tokens if _token_id(tokenizer, token) is None]
    if missing:
        raise UserError(
            f"data.template={name} needs the tokens {', '.join(missing)}, which this tokenizer lacks; choose the "
            "template of the language model, or data.template=tokenizer for the chat template that it brings"
        )
    return template


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    # A token that is missing gives None, or the unknown token's id.
    found = tokenizer.convert_tokens_to_ids(token)
    return found if isinstance(found, int) and tokenizer.convert_ids_to_tokens(found) == token else None


def encode(
    turns: Sequence[Turn],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    image_token_id: int,
    image_tokens: int,
    max_text_tokens: int,
) -> Encoded | None:
    """A whole conversation with its loss mask.

    Args:
        turns: human and gpt by turns, beginning with human and ending with gpt; at most one has the picture.
        template: from `template_for`.
        tokenizer: the one that the template was made for.
        image_token_id: token that stands for a part of the picture.
        image_tokens: how many of them a picture takes.
        max_text_tokens: longest allowed conversation without picture tokens; see the module for what is dropped.

    Returns:
        ids and labels, or None where not one token of an answer fits.
    """
    assert _alternate(turns, ending="gpt"), turns
    encoder = _encoder(template, tokenizer, len(tokenizer), image_token_id)
    ids: list[int] = []
    labels: list[int] = []
    used, has_image, rounds, cut, tail = 0, False, 0, False, encoder.tail
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        asked, said = encoder.question(question, first=rounds == 0), encoder.answer(answer)
        room = max_text_tokens - used - len(asked) + question.image  # the picture is one token of `asked`
        if len(said) + len(tail) > room:
            if rounds:
                break
            if room < 1:
                return None
            cut, said, tail = len(said) > room, said[:room], []
        used = max_text_tokens - room + len(said)
        expanded = encoder.with_picture(asked, image_tokens)
        ids += expanded + said
        labels += [IGNORED_LABEL] * len(expanded) + said
        has_image |= question.image
        rounds += 1
        if cut:
            break
    return Encoded(ids + tail, labels + [IGNORED_LABEL] * len(tail), has_image, rounds, cut)


def encode_prompt(
    turns: Sequence[Turn],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    image_token_id: int,
    image_tokens: int,
) -> list[int]:
    """A conversation up to where the model's next answer begins; the same ids that `encode` puts before that answer.

    Args:
        turns: human and gpt by turns, beginning and ending with human.
        template: from `template_for`.
        tokenizer: the one that the template was made for.
        image_token_id: token that stands for a part of the picture.
        image_tokens: how many of them a picture takes.
    """
    assert _alternate(turns, ending="human"), turns
    encoder = _encoder(template, tokenizer, len(tokenizer), image_token_id)
    ids: list[int] = []
    for number, turn in enumerate(turns):
        if turn.role == "human":
            ids += encoder.with_picture(encoder.question(turn, first=number == 0), image_tokens)
        else:
            ids += encoder.answer(turn)
    return ids


def stop_ids(template: Template, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens at which an answer is over: that which ends a turn, and the tokenizer's end of sequence."""
    found = [_token_id(tokenizer, token) for token in template.tokens if token in template.end]
    return sorted({token for token in [*found, tokenizer.eos_token_id] if token is not None})


def _alternate(turns: Sequence[Turn], ending: str) -> bool:
    roles = [turn.role for turn in turns]
    return roles == [("human", "gpt")[number % 2] for number in range(len(turns))] and roles[-1:] == [ending]


class _Encoder:
    """A template and a tokenizer, put together once."""

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase, image_token_id: int) -> None:
        self._template, self._image_token_id = template, image_token_id
        self._bos = tokenizer.bos_token_id if template.bos else None
        self._special: dict[str, int] = dict(
            zip(template.tokens, tokenizer.convert_tokens_to_ids(list(template.tokens)), strict=True)
        )
        names = sorted(template.tokens, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, names))})") if names else re.compile(r"((?!))")
        self.sections = SectionEncoder(tokenizer, [image_token_id, *self._special.values()])
        self._end = self._ids(self._parts(template.end))
        self.tail = self._ids(self._parts(template.tail))
        self._answer_place: Place = "inside" if isinstance(self._parts(template.head)[-1], str) else "after_token"

    def question(self, turn: Turn, first: bool) -> list[int]:
        """Everything from the end of the last answer to the beginning of the next; the picture is one token."""
        template, text = self._template, turn.text.strip() if self._template.strips else turn.text
        parts = self._parts(template.opening if first else template.between)
        if turn.image:
            parts += [self._image_token_id, f"\n{text}" if text else ""]
        else:
            parts.append(text)
        parts += self._parts(template.head)
        return self._ids(parts, "start") if first else self._ids(parts)

    def answer(self, turn: Turn) -> list[int]:
        """An answer with what ends it."""
        text = turn.text.strip() if self._template.strips else turn.text
        return self.sections.ids(self._template.answer_prefix + text, self._answer_place) + self._end

    def with_picture(self, ids: list[int], image_tokens: int) -> list[int]:
        """The tokens of a question with the picture's one token repeated."""
        if self._image_token_id not in ids:
            return ids
        at = ids.index(self._image_token_id)
        return ids[:at] + [self._image_token_id] * image_tokens + ids[at + 1 :]

    def _parts(self, text: str) -> list[str | int]:
        return [self._special.get(part, part) for part in self._cut.split(text) if part]

    def _ids(self, parts: Iterable[str | int], place: Place = "after_token") -> list[int]:
        ids: list[int] = []
        if place == "start" and self._bos is not None:
            ids.append(self._bos)
        for kind, group in groupby(parts, key=type):
            if kind is str:
                ids += self.sections.ids("".join(map(str, group)), place)
                continue
            ids += [int(part) for part in group]
            apart = self._template.picture_apart and ids[-1] == self._image_token_id
            place = "start" if apart else "after_token"
        return ids


@lru_cache(maxsize=8)
def _encoder(template: Template, tokenizer: PreTrainedTokenizerBase, size: int, image_token_id: int) -> _Encoder:
    # `size`: a tokenizer that was given new tokens meanwhile is another one.
    return _Encoder(template, tokenizer, image_token_id)
