"""DreamBooth's `prompts_and_classes.txt`, read as text: it holds Python source, which is never run."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError

NAME = "prompts_and_classes.txt"
_OBJECTS, _LIVE = "Object Prompts", "Live Subject Prompts"
# Classes whose subjects are alive, as DreamBooth divides its 30 subjects.
LIVE_CLASSES = frozenset({"cat", "dog"})
_ITEM = re.compile(r"""^(?P<text>(?P<quote>['"]).*(?P=quote))\s*(?:\.format\([^()]*\))?\s*,?$""")


@dataclass(frozen=True)
class PromptFile:
    """What the file says.

    Args:
        classes: subject -> class word, which may be of several words (`stuffed animal`).
        object_prompts: for things, with `{token}` and `{class}`.
        live_prompts: for animals, likewise.
    """

    classes: dict[str, str]
    object_prompts: list[str]
    live_prompts: list[str]

    def prompts_of(self, class_word: str) -> list[str]:
        """The prompts for subjects of a class."""
        return self.live_prompts if class_word in LIVE_CLASSES else self.object_prompts


def read_prompts(path: Path) -> PromptFile:
    """Read `prompts_and_classes.txt`.

    Args:
        path: the file. Lines `subject,class` come first, then the lists under the headings `Object Prompts` and `Live
            Subject Prompts`, one quoted text a line, in which `{0}` is the token and `{1}` the class word.

    Raises:
        UserError: it cannot be read, or a line is neither; the message has its number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {_OBJECTS: [], _LIVE: []}
    heading = ""
    for number, line in enumerate((line.strip() for line in lines), start=1):
        if line in prompts:
            heading = line
        elif heading and (item := _ITEM.match(line)):
            prompts[heading].append(_prompt(item["text"], path, number))
        elif not heading and re.fullmatch(r"[^,]+,[^,]+", line):
            subject, class_word = (part.strip() for part in line.split(","))
            if (subject, class_word) != ("subject_name", "class"):
                classes[subject] = class_word
        elif line not in ("", "Classes", "Prompts", "prompt_list = [", "]"):
            kind = "a quoted prompt" if heading else "`subject,class`"
            raise UserError(f"{path}, line {number}: {line[:80]!r} is not {kind}")
    if not classes:
        raise UserError(f"{path} names no subject; it needs lines `subject,class`, as DreamBooth's own has them")
    return PromptFile(classes, prompts[_OBJECTS], prompts[_LIVE])


def _prompt(text: str, path: Path, number: int) -> str:
    try:
        literal = ast.literal_eval(text)  # undoes what is escaped, and runs nothing
    except (ValueError, SyntaxError):
        literal = None
    if not isinstance(literal, str):
        raise UserError(f"{path}, line {number}: {text[:80]} is not one quoted text")
    prompt = literal.replace("{0}", "{token}").replace("{1}", "{class}")
    for name in re.findall(r"\{([^{}]*)\}", prompt):
        if name not in ("token", "class"):
            raise UserError(f"{path}, line {number}: {{{name}}} is not filled in; {{0}} is the token, {{1}} the class")
    return prompt
