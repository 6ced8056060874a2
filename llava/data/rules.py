"""One row of LLaVA's schema → a sound conversation, or why it is none. Pure functions.

What is known to be wrong in files of this schema and can be mended without guessing is mended by a named rule; each is
counted and stands in the report. Anything else is a defect: the conversation is left out, named, with its reason.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from common.words import printable
from llava.conversation import Turn

IMAGE_MARK = "<image>"
TEXT_ONLY = "text-only"
# Part of the key of every index: raise it when a rule changes.
VERSION = 1

RULES: Mapping[str, str] = MappingProxyType(
    {
        "leading_answers_dropped": "turns of gpt before the first of human were dropped",
        "unanswered_questions_dropped": "turns of human behind the last of gpt were dropped",
        "image_mark_moved": "<image> stood elsewhere in its turn and was put in front",
        "image_mark_repeated": "<image> stood several times in one turn and counts once",
        "image_mark_added": "a picture without <image> was put in front of the first question",
        "image_mark_later": "the picture belongs to a later question, and stays there",
        "image_mark_is_text": "<image> in a conversation without a picture is text, as LLaVA reads it",
        "id_missing": "without an id (a string or a number); named by its line",
    }
)

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\|//")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")


class Row(NamedTuple):
    """A sound conversation.

    Args:
        id: the row's, as text.
        image: path of the picture under the image root, None for text alone.
        image_turn: the turn that the picture stands in front of, -1 for text alone.
        texts: what is said, human and gpt by turns, without `<image>`.
    """

    id: str
    image: str | None
    image_turn: int
    texts: list[str]

    @property
    def source(self) -> str:
        """The first folder of the picture's path, which names the data set that it comes from."""
        return source_of(self.image)


class Defect(ValueError):
    """Why a row is no conversation to train on, in a few words that are the same for all such rows."""

    def __init__(self, reason: str, row_id: str) -> None:
        super().__init__(reason)
        self.reason, self.row_id = reason, row_id


def source_of(image: str | None) -> str:
    """The first folder of a picture's path; `text-only` without a picture, `.` for one that lies in no folder."""
    if image is None:
        return TEXT_ONLY
    folder, slash, _ = image.partition("/")
    return folder if slash else "."


def turns_of(texts: Sequence[str], image_turn: int) -> list[Turn]:
    """The turns of a `Row`."""
    return [Turn("gpt" if i % 2 else "human", text, i == image_turn) for i, text in enumerate(texts)]


def normalise(value: Any, line: int) -> tuple[Row, list[str]]:
    """A row of LLaVA's schema as a sound conversation.

    Args:
        value: the row, as JSON gave it.
        line: where it stands, to name a row without an id.

    Returns:
        the conversation, and the names of the `RULES` that were applied to it.

    Raises:
        Defect: it is none.
    """
    name = f"line {line}"
    if not isinstance(value, dict):
        raise Defect(f"the row is {_kind(value)}, not an object", name)
    applied = []
    given = value.get("id")
    if isinstance(given, str | int | float) and not isinstance(given, bool) and str(given):
        name = str(given)
    else:
        applied.append("id_missing")
    try:
        image = _image(value)
        turns = _whole_rounds(_turns(value), applied)
        texts, image_turn = _place_image(turns, image is not None, applied)
        _require_text(texts, image_turn)
        _require_unicode([name, image or "", *texts])
    except _Unsound as error:
        raise Defect(str(error), printable(name)) from None
    return Row(name, image, image_turn, texts), applied


class _Unsound(ValueError):
    pass


def _image(value: dict[str, Any]) -> str | None:
    image = value.get("image")
    if image is None:  # absent, or null as `datasets` writes it
        return None
    if not isinstance(image, str):
        raise _Unsound(f"image is {_kind(image)}, not a path" + " (one picture each)" * isinstance(image, list))
    if not image.strip() or "\0" in image:
        raise _Unsound("image is no path")
    if _URL.match(image):
        raise _Unsound("image is an address on the web, not a path under the image root")
    if image.startswith(("/", "~")) or _DRIVE.match(image) or ".." in re.split(r"[\\/]", image):
        raise _Unsound("image is a path that leads out of the image root")
    return posixpath.normpath(image)


def _turns(value: dict[str, Any]) -> list[tuple[str, str]]:
    said = value.get("conversations")
    if not isinstance(said, list):
        what = f"{_kind(said)}, not a list" if "conversations" in value else "missing"
        raise _Unsound(f"conversations is {what}")
    turns = []
    for turn in said:
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise _Unsound('a turn is no object with "from" and "value"')
        if turn["from"] not in ("human", "gpt"):
            raise _Unsound('a turn is from neither "human" nor "gpt"')
        if not isinstance(turn["value"], str):
            raise _Unsound(f"a turn's value is {_kind(turn['value'])}, not text")
        turns.append((turn["from"], turn["value"]))
    return turns


def _whole_rounds(turns: list[tuple[str, str]], applied: list[str]) -> list[tuple[str, str]]:
    """From the first question to the last answer."""
    asked = [i for i, (role, _) in enumerate(turns) if role == "human"]
    first = asked[0] if asked else len(turns)
    answered = [i for i, (role, _) in enumerate(turns) if role == "gpt" and i > first]
    if not answered:
        raise _Unsound("there is no answer behind a question")
    last = answered[-1] + 1
    if first:
        applied.append("leading_answers_dropped")
    if last < len(turns):
        applied.append("unanswered_questions_dropped")
    kept = turns[first:last]
    if any(role != ("human", "gpt")[i % 2] for i, (role, _) in enumerate(kept)):
        raise _Unsound("human and gpt do not take turns")
    return kept


def _place_image(turns: list[tuple[str, str]], has_image: bool, applied: list[str]) -> tuple[list[str], int]:
    """The texts without the picture's mark, and the turn that the picture belongs to (-1: none)."""
    texts = [text for _, text in turns]
    marked = [i for i, text in enumerate(texts) if IMAGE_MARK in text]
    if not has_image:
        if marked:
            applied.append("image_mark_is_text")
        return texts, -1
    if any(i % 2 for i in marked):
        raise _Unsound("<image> stands in an answer")
    if len(marked) > 1:
        raise _Unsound("<image> stands in several turns, and there is one picture")
    if not marked:
        applied.append("image_mark_added")
        return texts, 0
    (turn,) = marked
    if texts[turn].count(IMAGE_MARK) > 1:
        applied.append("image_mark_repeated")
    if not texts[turn].strip().startswith(IMAGE_MARK):
        applied.append("image_mark_moved")
    if turn:
        applied.append("image_mark_later")
    # LLaVA's own way: all marks out, white space off both ends, one mark in front.
    texts[turn] = texts[turn].replace(IMAGE_MARK, "").strip()
    return texts, turn


def _require_text(texts: list[str], image_turn: int) -> None:
    for i, text in enumerate(texts):
        if not text.strip() and i != image_turn:
            raise _Unsound("an answer is empty" if i % 2 else "a question is empty")


def _require_unicode(texts: list[str]) -> None:
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        raise _Unsound("a text holds half a character (a lone surrogate)") from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
