from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llava.model_tokens import IMAGE_TOKEN, make_vocabulary
from tests.llava.tiny import make_tokenizer

RESERVED = tuple(f"<|reserved_special_token_{i}|>" for i in range(11))


def reloaded(tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedTokenizerFast:
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("extra", "rows", "expected_id", "expected_rows"),
    [
        ((IMAGE_TOKEN,), 381, 380, 381),  # it has one
        (RESERVED, 391, 390, 391),  # LLaMA-3: a reserved token, that with the highest number, in its place
        (("[UNUSED_TOKEN_3]", "[UNUSED_TOKEN_12]"), 382, 381, 382),  # InternLM2
        ((), 384, 380, 384),  # rows to spare behind the last token
        ((), 380, 380, 384),  # full: the next multiple of 64
    ],
    ids=["own", "llama3", "internlm2", "spare", "full"],
)
def test_image_token_takes_the_place_that_disturbs_least(
    tmp_path: Path, extra: tuple[str, ...], rows: int, expected_id: int, expected_rows: int
) -> None:
    tokenizer = make_tokenizer(extra)
    before = tokenizer.encode("What is in the picture?")
    found = make_vocabulary(tokenizer, rows)
    assert (found.image_token_id, found.rows) == (expected_id, expected_rows)
    again = reloaded(found.tokenizer, tmp_path)
    for each in (found.tokenizer, again):
        assert each.encode(f"a{IMAGE_TOKEN}b", add_special_tokens=False)[1:-1] == [expected_id]
        assert each.encode("What is in the picture?") == before
        assert each.decode([expected_id], skip_special_tokens=True) == ""


def test_other_reserved_tokens_keep_their_names() -> None:
    found = make_vocabulary(make_tokenizer(RESERVED), 391).tokenizer
    assert [found.convert_tokens_to_ids(name) for name in RESERVED[:-1]] == list(range(380, 390))
    assert RESERVED[-1] not in found.get_vocab()


def test_other_special_tokens_stay_special() -> None:
    tokenizer = make_tokenizer(())
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_end|>"]})
    found = make_vocabulary(tokenizer, 380).tokenizer
    assert {"<|im_end|>", IMAGE_TOKEN} <= set(found.all_special_tokens)


def test_padding_is_not_what_ends_an_answer() -> None:
    for prepare in (lambda t: setattr(t, "pad_token", None), lambda t: setattr(t, "pad_token", t.eos_token)):
        tokenizer = make_tokenizer()
        prepare(tokenizer)
        found = make_vocabulary(tokenizer, 381).tokenizer
        assert found.pad_token_id not in (None, found.eos_token_id)


def test_own_padding_is_kept() -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "<unk>"
    assert make_vocabulary(tokenizer, 381).tokenizer.pad_token == "<unk>"
