"""The phrases that messages are made of."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A phrase that names up to three near matches of `name`, or all of `known` where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(names)}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: `1 set`, `2 sets`, `1,000 sets`; `plural` where an s at the end does not make it."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(items: Iterable[object], most: int = 8) -> str:
    """The first `most` of some items with commas between them, and how many more there are."""
    found = [str(item) for item in items]
    more = len(found) - most
    return ", ".join(found[:most]) + (f" and {more:,} more" if more > 0 else "")


def first_line(error: BaseException) -> str:
    """What an error says, as far as its first line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def printable(name: str) -> str:
    """A file name or a text that can be written as UTF-8: bytes, and halves of characters, that cannot are escaped."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can write and no file name has
        return name.encode(errors="backslashreplace").decode()
