"""Stretches of text between special tokens → ids, in which no special token can appear.

A tokenizer cuts a conversation at its special tokens and treats each stretch of text in between by itself. Encoding the
stretches one by one therefore gives the ids of the whole, the places of the special tokens are known without searching
for them, and a user who writes `</s>` or `<|eot_id|>` gets those characters, not the end of a turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from common.cache import fingerprint_of
from common.errors import UserError

Place = Literal["start", "after_token", "inside"]
"""Where text stands: at the start of everything, behind a special token or a picture, or behind other text."""


class SectionEncoder:
    """Encodes text as the tokenizer does at a given place, special tokens taken as characters.

    SentencePiece-like tokenizers put a space before text: at every stretch (`legacy`), only at the start, or nowhere.
    This class keeps to what the tokenizer itself does with the whole conversation; text that continues other text
    (an answer behind `ASSISTANT:`) never gets one.

    Args:
        tokenizer: a fast tokenizer of transformers; it is copied, not changed.
        special_ids: tokens that text must never give, beside the tokenizer's own special tokens.

    Raises:
        UserError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_ids: Iterable[int] = ()) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UserError(
                f"the tokenizer {type(tokenizer).__name__} of {tokenizer.name_or_path or 'the model'} is not a fast "
                "one; it must come as a tokenizer.json"
            )
        known = frozenset(special_tokens(tokenizer).values()) | frozenset(special_ids)
        # Text may hold what the vocabulary lacks: then the unknown token is the honest answer.
        self.special_ids = known - {tokenizer.unk_token_id}
        names = tokenizer.convert_ids_to_tokens(sorted(self.special_ids))
        self._halves = re.compile(
            "|".join(
                f"(?<={re.escape(name[: len(name) // 2])})(?={re.escape(name[len(name) // 2 :])})"
                for name in names
                if len(name) > 1
            )
            or r"(?!)"
        )
        state = _marked(json.loads(backend.to_str()), known)
        ordinary = [token for token in state["added_tokens"] if not token["special"]]
        self.fingerprint = fingerprint_of({**state, "added_tokens": ordinary})
        # Most tokenizers behave alike everywhere: then one copy of a large vocabulary is enough.
        made: dict[str, Tokenizer] = {}
        self._tokenizers: dict[Place, Tokenizer] = {}
        for place in get_args(Place):
            steps = json.dumps(_steps_at(state, place))
            if steps not in made:
                made[steps] = Tokenizer.from_str(json.dumps({**state, **json.loads(steps)}))
                made[steps].encode_special_tokens = True  # take them for text
            self._tokenizers[place] = made[steps]

    def ids(self, text: str, place: Place) -> list[int]:
        """The tokens of `text` at a place; none of them is special, whatever the text says."""
        if not text:
            return []
        found = self._tokenizers[place].encode(text, add_special_tokens=False).ids
        return found if self.special_ids.isdisjoint(found) else self._as_characters(text, place)

    def _as_characters(self, text: str, place: Place) -> list[int]:
        # A Unigram model knows `</s>` as a piece of its vocabulary: cut in the middle it is two ordinary ones.
        found: list[int] = []
        for part in filter(None, self._halves.split(text)):
            found += self._tokenizers["inside" if found else place].encode(part, add_special_tokens=False).ids
        return [token for token in found if token not in self.special_ids]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Every special token of a tokenizer with its id: the named ones, and those that its vocabulary marks as such."""
    marked = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {**dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)), **marked}


def _marked(state: dict[str, Any], special_ids: frozenset[int]) -> dict[str, Any]:
    """A tokenizer's description with `special_ids` marked as special, and without what it does to whole texts."""
    # Marked, not removed: the tokens behind a removed one would get other numbers.
    tokens = [{**token, "special": token["id"] in special_ids} for token in state.get("added_tokens", [])]
    return {**state, "added_tokens": tokens, "post_processor": None, "truncation": None, "padding": None}


def _steps_at(state: dict[str, Any], place: Place) -> dict[str, Any]:
    """The steps before a tokenizer's model, which put a space before text only where `place` asks for it."""
    steps = json.loads(json.dumps({key: state[key] for key in ("normalizer", "pre_tokenizer")}))
    for step in _steps(steps):
        if step.get("prepend_scheme") == "first" and place != "start":
            step["prepend_scheme"] = "never"
        if place == "inside":
            _leave_alone(step)
    return steps


def _leave_alone(step: dict[str, Any]) -> None:
    """Take the space before text out of one step of a tokenizer's description."""
    if "prepend_scheme" in step:
        step["prepend_scheme"] = "never"
    if step.get("type") == "ByteLevel":
        step["add_prefix_space"] = False
    if isinstance(step.get("normalizers"), list):
        step["normalizers"] = [child for child in step["normalizers"] if child.get("type") != "Prepend"]
    if isinstance(step.get("normalizer"), dict) and step["normalizer"].get("type") == "Prepend":
        step["normalizer"] = None


def _steps(value: Any) -> Iterator[dict[str, Any]]:
    """Every object within a JSON value, outermost first."""
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from _steps(child)
    elif isinstance(value, list):
        for child in value:
            yield from _steps(child)
