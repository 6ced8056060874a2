"""The short options of `mosgoat dreambooth train`, which stand for keys of the recipe."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError

HELP = """\
short options:
  --subject DIR         a folder of pictures (--data.path DIR); or, with --data.path, the name of a folder in it
                        (--data.subject NAME)
  --class-word WORD     what the subject is, such as dog (--data.class_word WORD)
  --subjects all|A,B    train a run for each of several folders in --data.path, into OUTPUT/SUBJECT
"""
_SHORT = ("--subject", "--class-word", "--subjects")


def expand(words: list[str]) -> tuple[list[str], list[str] | None]:
    """The short options in the recipe's words.

    Args:
        words: of the command line.

    Returns:
        The words with keys of the recipe only; and the names given to `--subjects`, empty for all of them, None
        without that option.

    Raises:
        UserError: an option without its value, given twice, or that contradicts another.
    """
    if "--help" in words or "-h" in words:
        print(HELP)
    long, given = [], {}
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option not in _SHORT:
            long.append(word)
            continue
        if option in given:
            raise UserError(f"{option} is given twice")
        given[option] = value if equals else next(rest, "")
        if not given[option] or given[option].startswith("--"):
            raise UserError(f"{option} needs a value; see --help")
    subject, subjects = given.get("--subject"), given.get("--subjects")
    if subject is not None and subjects is not None:
        raise UserError("--subject and --subjects cannot be given together")
    if subject is not None:
        long += _words_of_subject(subject)
    if "--class-word" in given:
        long += ["--data.class_word", given["--class-word"]]
    if subjects is None:
        return long, None
    names = [] if subjects == "all" else [name.strip() for name in subjects.split(",") if name.strip()]
    if subjects != "all" and not names:
        raise UserError(f"--subjects={subjects} names no subject; give all, or names with commas between them")
    return long, list(dict.fromkeys(names))


def _words_of_subject(subject: str) -> list[str]:
    if subject.startswith("builtin:") or "/" in subject or Path(subject).expanduser().is_dir():
        return ["--data.path", subject, "--data.subject", "null"]  # which a recipe may name
    return ["--data.subject", subject]
