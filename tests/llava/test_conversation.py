"""Ids and loss masks against expectations written by hand, token by token."""

import random

import pytest
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from llava.conversation import TEMPLATES, Encoded, Turn, encode, encode_prompt, stop_ids, template_for
from tests.llava.small_tokenizers import IMAGE, byte_level, metaspace_bpe, unigram

ASK = Turn("human", "Hi", image=True)
ROUNDS = [ASK, Turn("gpt", "Yes"), Turn("human", "Bye"), Turn("gpt", "No")]
SYSTEM = TEMPLATES["vicuna_v1"].opening.removesuffix("USER: ")
LLAMA3_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def image_id(tokenizer: PreTrainedTokenizerFast) -> int:
    return tokenizer.convert_tokens_to_ids(IMAGE)


def coded(turns: list[Turn], name: str, tokenizer: PreTrainedTokenizerFast, limit: int = 10_000) -> Encoded | None:
    template = template_for(name, tokenizer)
    return encode(turns, template, tokenizer, image_token_id=image_id(tokenizer), image_tokens=2, max_text_tokens=limit)


def shown(encoded: Encoded | None, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The tokens, those that are learnt with a star in front."""
    assert encoded is not None
    assert len(encoded.input_ids) == len(encoded.labels)
    learnt = [label != -100 for label in encoded.labels]
    assert all(label in (-100, token) for label, token in zip(encoded.labels, encoded.input_ids, strict=True))
    names = tokenizer.convert_ids_to_tokens(encoded.input_ids)
    return ["*" * star + name for star, name in zip(learnt, names, strict=True)]


def after_system(tokens: list[str]) -> list[str]:
    return tokens[tokens.index("▁USER") :]


# LLaVA's own ids around the picture are 29871, -200, 29871, 13: a space, the picture, a space, a newline.
VICUNA_FIRST_ROUND = "▁USER : ▁ <image> <image> ▁ <0x0A> Hi ▁ASSISTANT : *▁Yes *</s>".split()


@pytest.mark.parametrize(
    ("scheme", "second"),
    [
        (None, "▁USER : ▁ Bye ▁ASSISTANT : *▁No *</s>"),  # legacy: a space before every stretch of text
        ("first", "USER : ▁ Bye ▁ASSISTANT : *▁No *</s>"),
    ],
)
def test_vicuna_gives_the_tokens_of_llava(scheme: str | None, second: str) -> None:
    tokenizer = metaspace_bpe(scheme)
    tokens = shown(coded(ROUNDS, "vicuna_v1", tokenizer), tokenizer)
    assert after_system(tokens) == VICUNA_FIRST_ROUND + second.split()
    assert tokens[:2] == ["<s>", "▁A"]  # LLaVA's begin with 1, 319
    ids = tokenizer.convert_tokens_to_ids(tokens[1 : tokens.index("▁USER")])
    assert tokenizer.decode(ids).strip() == SYSTEM.strip()


def test_vicuna_without_a_picture_is_one_stretch_of_text() -> None:
    tokenizer = metaspace_bpe("first")
    tokens = shown(coded([Turn("human", "Hi"), Turn("gpt", "Yes")], "vicuna_v1", tokenizer), tokenizer)
    assert after_system(tokens) == "▁USER : ▁Hi ▁ASSISTANT : *▁Yes *</s>".split()


def test_llama3_tokens_and_mask() -> None:
    tokenizer = byte_level()
    head = "<|start_header_id|> {} <|end_header_id|>"
    user, assistant = head.format("user"), head.format("assistant")
    expected = (
        f"<|begin_of_text|> {user} ĊĊ <image> <image> Ċ Hi <|eot_id|> {assistant} ĊĊ *Yes *<|eot_id|> "
        f"{user} ĊĊ B y e <|eot_id|> {assistant} ĊĊ *N *o *<|eot_id|>"
    )
    assert shown(coded(ROUNDS, "llama3", tokenizer), tokenizer) == expected.split()


@pytest.mark.parametrize("tokenizer", [metaspace_bpe("never"), unigram()], ids=["bpe", "unigram"])
def test_internlm2_tokens_and_mask(tokenizer: PreTrainedTokenizerFast) -> None:
    newline = "<0x0A>" if "<0x0A>" in tokenizer.get_vocab() else "\n"
    expected = (
        "<s> <|im_start|> user NL <image> <image> NL Hi <|im_end|> NL <|im_start|> assistant NL *Yes *<|im_end|> NL "
        "<|im_start|> user NL Bye <|im_end|> NL <|im_start|> assistant NL *N *o *<|im_end|> NL"
    )
    tokens = shown(coded(ROUNDS, "internlm2", tokenizer), tokenizer)
    assert tokens == [newline if token == "NL" else token for token in expected.split()]


def test_no_space_is_put_before_a_stretch_that_has_none() -> None:
    """A tokenizer that prefixes the first stretch only: nothing behind special tokens or inside an answer."""
    tokenizer = metaspace_bpe("first")
    tokens = shown(coded([Turn("human", "Hi"), Turn("gpt", "Yes")], "internlm2", tokenizer), tokenizer)
    expected = "<s> <|im_start|> user NL Hi <|im_end|> NL <|im_start|> assistant NL *Yes *<|im_end|> NL"
    assert tokens == expected.replace("NL", "<0x0A>").split()


@pytest.mark.parametrize(
    ("name", "make", "special"),
    [
        ("vicuna_v1", lambda: metaspace_bpe(None), ["</s>", "<s>", "<image>", "<|im_end|>"]),
        ("internlm2", lambda: metaspace_bpe("never"), ["</s>", "<|im_end|>", "<|im_start|>", "<image>"]),
        ("internlm2", unigram, ["</s>", "<|im_end|>", "<|im_start|>", "<image>"]),
        ("llama3", byte_level, ["<|eot_id|>", "<|start_header_id|>", "<|end_of_text|>", "<image>"]),
    ],
    ids=["vicuna", "internlm2", "unigram", "llama3"],
)
def test_special_tokens_in_what_is_said_are_text(name: str, make, special: list[str]) -> None:
    tokenizer = make()
    said = "a".join(special)
    plain = coded([Turn("human", "Hi"), Turn("gpt", "Yes")], name, tokenizer)
    spiked = coded([Turn("human", said), Turn("gpt", said)], name, tokenizer)
    assert plain is not None
    assert spiked is not None
    marks = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    # Exactly the template's own special tokens; the answer, said twice, is there in full.
    assert [i for i in spiked.input_ids if i in marks] == [i for i in plain.input_ids if i in marks]
    text = [i for i in spiked.input_ids if i not in marks]
    assert tokenizer.decode(text).count(said) == 2


def test_answer_that_names_the_end_token_does_not_end_there() -> None:
    tokenizer = byte_level()
    tokens = shown(coded([Turn("human", "Hi"), Turn("gpt", "<|eot_id|>")], "llama3", tokenizer), tokenizer)
    assert tokens[-11:] == [*(f"*{letter}" for letter in "<|eot_id|>"), "*<|eot_id|>"]


@pytest.mark.parametrize("name", ["vicuna_v1", "internlm2", "llama3"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_prompt_is_what_stands_before_the_answer_in_training(name: str, rounds: int) -> None:
    tokenizer = byte_level() if name == "llama3" else metaspace_bpe("first")
    template = template_for(name, tokenizer)
    prompt = encode_prompt(
        ROUNDS[: 2 * rounds - 1], template, tokenizer, image_token_id=image_id(tokenizer), image_tokens=2
    )
    whole = coded(ROUNDS[: 2 * rounds], name, tokenizer)
    assert whole is not None
    assert whole.input_ids[: len(prompt)] == prompt
    assert whole.labels[len(prompt) - 1] == -100
    assert whole.labels[len(prompt)] == whole.input_ids[len(prompt)]


def test_answers_end_at_the_turns_token_and_at_the_end_of_sequence() -> None:
    for name, tokenizer, names in (
        ("vicuna_v1", metaspace_bpe(None), ["</s>"]),
        ("internlm2", metaspace_bpe("never"), ["</s>", "<|im_end|>"]),
        ("llama3", byte_level(), ["<|end_of_text|>", "<|eot_id|>"]),
    ):
        assert tokenizer.convert_ids_to_tokens(stop_ids(template_for(name, tokenizer), tokenizer)) == names


LONG = [Turn("human", "Hi"), Turn("gpt", "abcdef"), Turn("human", "Bye"), Turn("gpt", "No")]
# <|begin_of_text|>, the user's head of 4, Hi, <|eot_id|> and the assistant's head of 4; 6 letters and <|eot_id|>.
FIRST = 1 + 4 + 1 + 5 + 7
# The user's head, 3 letters, <|eot_id|> and the assistant's head; 2 letters and <|eot_id|>.
SECOND = 4 + 3 + 5 + 3


@pytest.mark.parametrize(
    ("limit", "length", "rounds", "cut", "end"),
    [
        (FIRST + SECOND, FIRST + SECOND, 2, False, ["*N", "*o", "*<|eot_id|>"]),
        (FIRST + SECOND - 1, FIRST, 1, False, ["*e", "*f", "*<|eot_id|>"]),
        (FIRST, FIRST, 1, False, ["*e", "*f", "*<|eot_id|>"]),
        (FIRST - 1, FIRST - 1, 1, True, ["*d", "*e", "*f"]),
        (FIRST - 6, FIRST - 6, 1, True, ["<|end_header_id|>", "ĊĊ", "*a"]),
    ],
)
def test_whole_rounds_are_dropped_first_and_then_the_answer_is_cut(
    limit: int, length: int, rounds: int, cut: bool, end: list[str]
) -> None:
    tokenizer = byte_level()
    encoded = coded(LONG, "llama3", tokenizer, limit)
    assert encoded is not None
    assert (len(encoded.input_ids), encoded.rounds, encoded.cut) == (length, rounds, cut)
    assert shown(encoded, tokenizer)[-3:] == end


def test_no_sample_is_left_without_a_supervised_token() -> None:
    assert coded(LONG, "llama3", byte_level(), FIRST - 7) is None


def test_tail_is_dropped_before_the_answer() -> None:
    tokenizer = metaspace_bpe("never")
    turns = [Turn("human", "Hi"), Turn("gpt", "Yes")]
    whole = coded(turns, "internlm2", tokenizer)
    assert whole is not None
    shorter = coded(turns, "internlm2", tokenizer, len(whole.input_ids) - 1)
    assert shorter is not None
    assert (shorter.input_ids, shorter.cut) == (whole.input_ids[:-1], False)
    assert shown(shorter, tokenizer)[-2:] == ["*Yes", "*<|im_end|>"]


@pytest.mark.parametrize("limit", range(1, 60))
def test_picture_is_never_cut_and_not_counted(limit: int) -> None:
    tokenizer = byte_level()
    later = [Turn("human", "Hi"), Turn("gpt", "Yes"), Turn("human", "Bye", image=True), Turn("gpt", "No")]
    for turns in (ROUNDS, later):
        encoded = coded(turns, "llama3", tokenizer, limit)
        if encoded is None:
            continue
        pictures = encoded.input_ids.count(image_id(tokenizer))
        assert pictures == (2 if encoded.has_image else 0)
        assert encoded.has_image == (turns is ROUNDS or encoded.rounds == 2)
        assert len(encoded.input_ids) - pictures <= limit
        assert any(label != -100 for label in encoded.labels)


def test_every_picture_token_is_there() -> None:
    tokenizer = byte_level()
    template = template_for("llama3", tokenizer)
    encoded = encode(
        ROUNDS, template, tokenizer, image_token_id=image_id(tokenizer), image_tokens=576, max_text_tokens=99
    )
    assert encoded is not None
    assert encoded.input_ids.count(image_id(tokenizer)) == 576
    assert encoded.labels[encoded.input_ids.index(image_id(tokenizer))] == -100


def test_chat_template_of_the_tokenizer_is_followed_to_the_letter() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = LLAMA3_CHAT
    turns = [Turn("human", " Hi\n"), Turn("gpt", "Yes "), Turn("human", "Bye"), Turn("gpt", "No")]
    messages = [{"role": ("assistant", "user")[turn.role == "human"], "content": turn.text} for turn in turns]
    encoded = coded(turns, "tokenizer", tokenizer)
    assert encoded is not None
    assert encoded.input_ids == tokenizer.apply_chat_template(messages, return_dict=False)
    learnt = [token for token in shown(encoded, tokenizer) if token.startswith("*")]
    assert learnt == ["*Yes", "*<|eot_id|>", "*N", "*o", "*<|eot_id|>"]
    prompt = encode_prompt(
        turns[:3], template_for("tokenizer", tokenizer), tokenizer, image_token_id=image_id(tokenizer), image_tokens=2
    )
    assert prompt == tokenizer.apply_chat_template(messages[:3], add_generation_prompt=True, return_dict=False)


def test_chat_template_equals_the_template_that_is_written_here() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = LLAMA3_CHAT
    assert coded(ROUNDS, "tokenizer", tokenizer) == coded(ROUNDS, "llama3", tokenizer)


def test_chat_template_for_messages_in_parts_is_understood() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}"
        "{% endfor %}{% if m['role'] == 'assistant' %}<|eot_id|>{% else %}{{ '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    expected = "user : Ġ Hi Ċ assistant : Ġ *Yes *<|eot_id|>".split()
    turns = [Turn("human", "Hi"), Turn("gpt", "Yes")]
    assert shown(coded(turns, "tokenizer", tokenizer), tokenizer) == expected


@pytest.mark.parametrize(
    ("chat", "problem"),
    [
        (None, "no chat template"),
        (
            "{% for m in messages %}<|start_header_id|>{% if loop.last %}{{ m['content'] }}{% endif %}<|eot_id|>"
            "{% endfor %}",
            "cannot be used",
        ),
        (
            "{% for m in messages %}{% if loop.last %}last{% endif %}{{ m['content'] }}<|eot_id|>{% endfor %}",
            "prefix-stable",
        ),
        ("{% for m in messages %}[{{ loop.index }}]{{ m['content'] }}<|eot_id|>{% endfor %}", "prefix-stable"),
        ("{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|eot_id|>{% endfor %}", "prefix-stable"),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", "no special token"),
        ("{{ raise_exception('only for me') }}", "only for me"),
        ("{% for m in messages", "cannot be used"),
    ],
)
def test_unusable_chat_template_is_a_user_error(chat: str | None, problem: str) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = chat
    with pytest.raises(UserError, match=problem):
        template_for("tokenizer", tokenizer)


def test_template_of_another_model_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"llama3 needs the tokens <\|begin_of_text\|>.*data.template=tokenizer"):
        template_for("llama3", unigram())
    tokenizer = byte_level()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="eos_token"):
        template_for("vicuna_v1", tokenizer)


def test_tokenizer_itself_is_not_changed() -> None:
    tokenizer = metaspace_bpe("first")
    before = tokenizer.backend_tokenizer.to_str()
    coded(ROUNDS, "vicuna_v1", tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer("</s>", add_special_tokens=False).input_ids == [tokenizer.eos_token_id]


def test_token_added_meanwhile_is_respected() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["Bye"])
    before = shown(coded(ROUNDS, "llama3", tokenizer), tokenizer)
    assert "Bye" in before
    tokenizer.add_tokens(["Hi"])
    assert "Hi" in shown(coded(ROUNDS, "llama3", tokenizer), tokenizer)


def llavas_ids(turns: list[Turn], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What LLaVA does: the whole conversation as one text, cut at `<image>`, each piece tokenised by itself."""
    text = SYSTEM
    for turn in turns:
        said = f"<image>\n{turn.text}" if turn.image else turn.text
        text += f"USER: {said} " if turn.role == "human" else f"ASSISTANT: {said}</s>"
    pieces = [tokenizer(piece, add_special_tokens=False).input_ids for piece in text.split("<image>")]
    ids = [tokenizer.bos_token_id, *pieces[0]]
    for piece in pieces[1:]:
        ids += [image_id(tokenizer)] * 2 + piece
    return ids


@pytest.mark.parametrize("scheme", [None, "first", "never"])
@pytest.mark.parametrize("seed", range(20))
def test_vicuna_equals_llavas_way_of_tokenising_the_whole(scheme: str | None, seed: int) -> None:
    rng = random.Random(seed)
    tokenizer = metaspace_bpe(scheme)

    def said() -> str:
        return " ".join(
            rng.choices(["Hi", "two", "Yes,", "No.", "a\nb", "é!", "(Bye)", "USER:", "5"], k=rng.randint(1, 6))
        )

    rounds = [(Turn("human", said()), Turn("gpt", said())) for _ in range(rng.randint(1, 4))]
    turns = [turn for pair in rounds for turn in pair]
    if rng.random() < 0.8:
        turns[0] = turns[0]._replace(image=True)
    encoded = coded(turns, "vicuna_v1", tokenizer)
    assert encoded is not None
    assert encoded.input_ids == llavas_ids(turns, tokenizer)
    learnt = [label for label in encoded.labels if label != -100]
    answers = "".join(f" {answer.text}</s>" for _, answer in rounds)
    assert tokenizer.decode(learnt) == answers
