"""Reading an option letter out of free text."""

from __future__ import annotations

import random

import pytest

from eval.vlm.scoring import extract_choice
from tests.eval.vlm.scoring import reference

OPTIONS = {"A": "a cat", "B": "a dog", "C": "two birds", "D": "None"}

# What each means was read off VLMEvalKit's rules and confirmed by running its function.
AWKWARD = {
    "A": "A",
    "A.": "A",
    "(B)": "B",
    "[C]": "C",
    "**B**": "B",
    "#D": "D",
    "{A}": "A",
    "A: a cat": "A",
    "B!": "B",
    "C;": "C",
    " D ": "D",
    "\nB\n": "B",
    "B\n\n": "B",
    "Answer: C": "C",
    "The answer is C": "C",
    "The answer is C.": "C",
    "The correct answer is **B**. Here is why: it barks and it has a long tail.": "B",
    "the ANSWER IS b": "B",
    "I think it must be B": "B",
    "It shows D (none of them)": "D",
    # option texts
    "a dog": "B",
    "THE DOG: A DOG!": "A",  # the article is a capital standing alone
    "It is A DOG": "A",
    "It is two birds.": "C",
    "None": "D",
    "none": "D",
    # a letter that is not among the last four words
    "B because of all the fur there": None,
    # the pattern has no end of the word, and ignores the case
    "The answer is blue": "B",
    "the answer is a": "A",
    "the answer is E": None,
    # lower case, several letters, quotes, tags
    "a": None,
    "b.": None,
    "A or B": None,
    "A, B": None,
    "AB": None,
    '"B"': None,
    "B</s>": None,
    "<B>": None,
    "B-": None,
    "A/B": None,
    # none at all
    "": None,
    " ": None,
    "E": None,
    "Z": None,
    "Z a dog": None,
    "NA": None,
    "nan": None,
    "a cat or a dog": None,
    # refusals win over letters
    "Sorry, I can't help with images of people yet. B": None,
    "I can't process this file. A": None,
    "I'm sorry, but without the image provided I choose A": None,
    "Cannot determine the answer: A": None,
    "Cannot determine the Answer: A": "A",
    # Chinese
    "答案是A": None,
    "（A）": None,
    "答案是 A": "A",
    "A。": None,
    "选 B .": "B",
    # VLMEvalKit's note of a failed call
    "Failed to obtain answer via API. A": None,
}


@pytest.mark.parametrize(("text", "meant"), AWKWARD.items())
def test_awkward_answers(text: str, meant: str | None) -> None:
    assert extract_choice(text, OPTIONS) == meant


def test_chinese_options_are_found_by_their_text() -> None:
    assert extract_choice("这是一只狗", {"A": "猫", "B": "狗"}) is None  # five characters are more than twice two
    assert extract_choice("是狗。", {"A": "猫咪", "B": "狗"}) == "B"


def test_the_text_of_an_option_counts_only_in_short_answers() -> None:
    options = {"A": "cat", "B": "dog"}  # six characters, so at most twelve
    assert extract_choice("it is a dog!", options) == "B"
    assert extract_choice("it is a dog!!", options) is None


def test_one_option_within_another_is_no_answer() -> None:
    assert extract_choice("red car", {"A": "car", "B": "red car"}) is None


def test_the_last_four_words_are_counted_from_the_first_mention() -> None:
    options = {"A": "x", "B": "y"}
    assert extract_choice("it is B yes indeed so", options) == "B"
    assert extract_choice("it is B yes indeed so then", options) is None
    # mentioned again at the end, but first too early
    assert extract_choice("B is what I would take so B", options) is None


def test_options_are_not_changed() -> None:
    options = {"A": "Cat", "B": "Dog"}
    extract_choice("dog", options)
    assert options == {"A": "Cat", "B": "Dog"}


def test_thousands_of_random_answers_agree_with_a_second_writing_of_the_rules() -> None:
    dice = random.Random(20)
    words = [*AWKWARD, *"ABCDEZ", "answer is", "the", ",", ".", "red", "1", "correct answer  is", "**A**"]
    texts = ["cat", "dog", "red", "None", "NA", "a", "1", "12", "Cat", "the dog", "猫"]
    seen = set()
    for _ in range(20_000):
        text = dice.choice([" ", "", "\n"]).join(dice.choices(words, k=dice.randrange(6)))
        options = dict(zip("ABCDEF", dice.choices(texts, k=dice.randrange(2, 7)), strict=False))
        meant = extract_choice(text, options)
        assert meant == reference.letter(text, options), (text, options)
        seen.add(meant)
    assert seen == {None, *"ABCDEF"}
