"""How VQA evaluation makes answers comparable: punctuation, articles, number words, apostrophes.

The rules are those of the VQA challenge's evaluation (Antol et al. 2015) as VLMEvalKit runs them.
"""

from __future__ import annotations

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_LONE_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")
# A slip of the original, which gives the flag re.UNICODE (32) in the place of a count: so many periods are removed.
_PERIODS = 32
_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
# Each is written for the same word with any one of its apostrophes left out.
_WITH_APOSTROPHE = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in _WITH_APOSTROPHE.split()
    for at, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


def strip_punctuation(text: str) -> str:
    """Remove punctuation, or put a space in its place.

    A mark is removed where it stands beside a space anywhere in the text, all marks are removed where the text has a
    number with a comma; otherwise each becomes a space. Periods between digits stay.
    """
    found, comma_in_number = text, _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        # looked for in the text as it was given, not in what has become of it
        removed = comma_in_number or f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if removed else " ")
    return _LONE_PERIOD.sub("", found, count=_PERIODS)


def normalise(answer: str) -> str:
    """An answer as VQA evaluation compares it: lower case, no punctuation, no articles, digits for number words."""
    text = strip_punctuation(answer.replace("\n", " ").replace("\t", " ").strip())
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
