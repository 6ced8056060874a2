"""The chat template that a tokenizer brings → our `Template`.

The template is rendered with placeholders for what is said, so that nothing in a question can be taken for a part of
the template, and it is rendered a few times only, however many conversations there are.
"""

from __future__ import annotations

import re
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from common.errors import UserError
from llava.conversation import Template
from llava.sections import special_tokens

# From a private-use area of Unicode, so that no template treats them in a special way.
_MARK = "\ue3a7{}\ue3a7"
_ADVICE = "choose data.template=vicuna_v1, llama3 or internlm2 (beside --model: --template)"


def derive_template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template of a tokenizer, proven on its own renderings of one, two and three rounds.

    Args:
        tokenizer: with a chat template.

    Raises:
        UserError: there is none; it is not prefix-stable (a further turn changes what stands before it, or the prompt
            for an answer is not what stands before the answer in training); its rounds differ; or no special token
            ends an answer.
    """
    if not tokenizer.chat_template:
        raise UserError(f"data.template=tokenizer, but this tokenizer has no chat template; {_ADVICE}")
    whole = _render(tokenizer, 6)
    shorter = [_render(tokenizer, 2), _render(tokenizer, 4)]
    prompts = [_render(tokenizer, 1), _render(tokenizer, 3), _render(tokenizer, 5)]
    pieces = [_between(whole, place) for place in range(7)]  # what stands around the six turns
    heads = [_between(prompt, 2 * number + 1) for number, prompt in enumerate(prompts)]
    tails = [_between(text, 2 * number + 2) for number, text in enumerate(shorter)]
    stable = (
        all(whole.startswith(text) for text in [*shorter, *prompts])
        and len(set(heads)) == 1
        and pieces[1] == pieces[3] == pieces[5]
        and pieces[2] == pieces[4]
        and tails[0] == tails[1] == pieces[6]
    )
    if not stable:
        raise UserError(
            "the tokenizer's chat template is not prefix-stable: a further turn changes what stands before it, so that "
            f"the answers cannot be told apart; {_ADVICE}"
        )
    end, tail = _cut_at_token(tokenizer, pieces[6])
    known = {token.content for token in tokenizer.added_tokens_decoder.values()} | set(special_tokens(tokenizer))
    texts = pieces[0] + heads[0] + pieces[2] + pieces[6]
    return Template(
        name="tokenizer",
        tokens=tuple(sorted(token for token in known if token in texts)),
        opening=pieces[0],
        head=heads[0],
        answer_prefix=pieces[1].removeprefix(heads[0]),
        end=end,
        tail=tail,
        between=pieces[2].removeprefix(end),
        strips=f" {_MARK.format(0)} " not in _render(tokenizer, 2, " {} "),
        picture_apart=False,
    )


def _render(tokenizer: PreTrainedTokenizerBase, turns: int, inner: str = "{}") -> str:
    """`turns` turns, beginning with the user; what is said in turn i is the mark of i."""
    said = [(("user", "assistant")[i % 2], inner.format(_MARK.format(i))) for i in range(turns)]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in said]
    in_parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    problem = "it leaves out what is said"
    for form in (messages, in_parts):
        try:
            text = tokenizer.apply_chat_template(form, tokenize=False, add_generation_prompt=turns % 2 == 1)
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
            continue
        if [text.count(_MARK.format(i)) for i in range(turns)] == [1] * turns:
            return text
    raise UserError(f"the tokenizer's chat template cannot be used ({problem}); {_ADVICE}")


def _between(text: str, place: int) -> str:
    """What stands between turn `place - 1` and turn `place` of a rendering."""
    return re.split(r"\ue3a7\d+\ue3a7", text)[place]


def _cut_at_token(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, str]:
    """What stands behind an answer, up to its first special token, and the rest."""
    found = [(text.find(token), len(token), token) for token in special_tokens(tokenizer) if token in text]
    if not found:
        raise UserError(
            "the tokenizer's chat template puts no special token behind an answer, so that a model trained with it "
            f"would not learn to stop; {_ADVICE}"
        )
    at, length, _ = min(found)
    return text[: at + length], text[at + length :]
