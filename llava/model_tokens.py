"""The tokenizer's part of a LLaVA model: a place in the vocabulary for the picture, and one for padding.

A picture stands in the text as `<image>`, whose id must be a row of the embedding. XTuner and LLaVA write -200
there and cut the sequence apart; transformers replaces the embeddings of the rows that carry the id.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.errors import UserError
from common.words import first_line
from llava.convert_tokenizer import plain_tokenizer

IMAGE_TOKEN = "<image>"
PAD_TOKEN = "<pad>"
# rows that are added to a full vocabulary come in blocks of so many, for the matrix product's sake
ROW_BLOCK = 64
# tokens that a tokenizer keeps in reserve: LLaMA-3, InternLM2, Gemma, BERT
_RESERVED = re.compile(r"<\|reserved_special_token_(\d+)\|>|\[UNUSED_TOKEN_(\d+)\]|<unused_?(\d+)>|\[unused_?(\d+)\]")
_PADDING_NAMES = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer that knows `<image>`, and the embedding rows that it needs.

    Args:
        tokenizer: with `<image>` as one special token, and a padding token.
        image_token_id: the id of `<image>`.
        rows: of the embedding and of the output head; more than the language model brings if its own were full.
    """

    tokenizer: PreTrainedTokenizerBase
    image_token_id: int
    rows: int


def open_tokenizer(key: str, folder: Path, *, plain: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Args:
        key: the recipe's key, for messages.
        folder: of the model.
        plain: read the files alone, whatever class they name.

    Raises:
        UserError: there is none, it cannot be read, or it would need code from the folder.
    """
    if plain or ((folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()):
        return plain_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # one class for each of its backends
        reason = first_line(error)
        raise UserError(
            f"{key}={folder} has no tokenizer that can be loaded ({reason}); it needs tokenizer.json, or "
            "tokenizer.model, beside the weights"
        ) from error


def make_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """Give the tokenizer a token for pictures and one for padding, in places that disturb nothing.

    The image token is, in this order: the tokenizer's own `<image>`; a token that it keeps in reserve, renamed (so
    LLaMA-3 and InternLM2 keep the size of their vocabulary and, in 4 bit, their head); a row behind its last
    token; a new row. The padding token is its own unless that ends a sequence, else `<unk>`, else found likewise.

    Args:
        tokenizer: changed in place.
        rows: of the language model's embedding.
    """
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        reserved = _reserved(tokenizer)
        if reserved:
            _rename(tokenizer, reserved[-1], IMAGE_TOKEN)
    # makes a token of it, or a plain one special: text that looks like it is never split
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        _choose_padding(tokenizer)
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert tokenizer.encode(IMAGE_TOKEN, add_special_tokens=False)[-1:] == [image_token_id]
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > rows:
        rows = -(-needed // ROW_BLOCK) * ROW_BLOCK
    return Vocabulary(tokenizer, image_token_id, rows)


def _choose_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    known = tokenizer.get_vocab()
    names = [name for name in _PADDING_NAMES if name in known]
    if tokenizer.unk_token is not None and tokenizer.unk_token != tokenizer.eos_token:
        names.append(tokenizer.unk_token)
    names += _reserved(tokenizer)[-1:]
    tokenizer.add_special_tokens({"pad_token": (names or [PAD_TOKEN])[0]})


def _reserved(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens in reserve, by their numbers; a tokenizer that is not fast has none that can be renamed."""
    if not tokenizer.is_fast:
        return []
    found = []
    for token in tokenizer.get_vocab():
        match = _RESERVED.fullmatch(token)
        if match:
            found.append((int(next(number for number in match.groups() if number is not None)), token))
    return [token for _, token in sorted(found)]


def _rename(tokenizer: PreTrainedTokenizerBase, old: str, new: str) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for added in state["added_tokens"]:
        if added["content"] == old:
            added["content"] = new
    vocabulary = state["model"].get("vocab")
    if isinstance(vocabulary, dict) and old in vocabulary:
        vocabulary[new] = vocabulary.pop(old)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
