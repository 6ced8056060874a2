"""Which option an answer means: VLMEvalKit's exact-matching rules, oddities and all, so that scores compare.

Odd but kept: a lower-case letter alone is no answer, yet `the answer is blue` means B, for the pattern asks for no end
of the word; `B</s>`, `"B"`, `答案是A` and `（A）` name no option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# An answer with one of these is none, whatever else it says.
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
# What VLMEvalKit writes down where a model behind an interface failed; only the options' texts are looked for in it.
_FAILED = "Failed to obtain answer via API"
_TO_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_VERBOSE = re.compile(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**")
_NONE_OF_THEM = "Z"
_LAST = 4


def extract_choice(text: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer means.

    Args:
        text: the model's answer.
        options: letter -> text.

    Returns:
        The letter, or None: it refuses, names several options or none. The rules, of which the first that applies
        decides (DESIGN 6.2):

        1. one of `REFUSALS`: no option;
        2. with `.()[],:;!*#{}` as spaces, exactly one option's letter, a capital standing alone, whose first place is
           among the last four words;
        3. a lone `Z` and no option's letter: no option;
        4. `answer is X`, where X is an option among A to D;
        5. exactly one option's text, in any case, in an answer of at most twice the length of all options.
    """
    if _FAILED in text:
        return _by_text(text, options)
    if any(refusal in text for refusal in REFUSALS):
        return None
    words = text.translate(_TO_SPACES).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - _LAST:
        return named[0]
    if not named and _NONE_OF_THEM in words:
        return None
    match = _VERBOSE.search(text)
    if match and match.group(1).upper() in options:
        return match.group(1).upper()
    return _by_text(text, options)


def _by_text(text: str, options: Mapping[str, str]) -> str | None:
    answer = text.lower()
    if len(answer) > 2 * sum(map(len, options.values())):
        return None
    found = [letter for letter, option in options.items() if option.lower() in answer]
    return found[0] if len(found) == 1 else None
