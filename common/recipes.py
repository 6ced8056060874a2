"""Reading recipes: YAML and command line → a frozen dataclass, with errors a user can act on.

Precedence: command line > YAML (`--config`, later files over earlier ones) > default.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from common.config_checks import require_sound
from common.errors import UserError
from common.words import did_you_mean

Recipe = TypeVar("Recipe")


def make_parser(recipe_class: type, prog: str) -> ArgumentParser:
    """A parser with `--config`, `--print_config` and one dotted option for every key of `recipe_class`."""
    parser = ArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False)
    parser.description = (recipe_class.__doc__ or "").split("\n")[0]
    parser.usage = f"{prog} [--config RECIPE.yaml ...] [--SECTION.KEY VALUE ...] [--print_config]"
    parser.add_argument("--config", action="config", help="a recipe (YAML); may be given more than once")
    parser.add_class_arguments(recipe_class, fail_untyped=True)
    hide_sections(parser)
    return parser


def hide_sections(parser: ArgumentParser) -> None:
    """Leave `--SECTION FILE`, which jsonargparse adds and `parse` refuses, out of the help: files go to `--config`."""
    for action in parser._actions:
        if type(action).__name__ == "_ActionConfigLoad":
            action.help = argparse.SUPPRESS


def parse(
    argv: Sequence[str],
    recipe_class: type[Recipe],
    *,
    prog: str,
    problems: Callable[[Recipe], Iterable[str]],
) -> Recipe:
    """Read a recipe from command-line words.

    Args:
        argv: the words behind the command.
        recipe_class: a frozen dataclass, possibly of further dataclasses.
        prog: the command as it is shown in the usage.
        problems: names everything that is impossible in a recipe whose types are right.

    Raises:
        UserError: an unknown key, a wrong type, an unreadable file or an impossible value; the message
            names all of the unknown keys or all of the impossible values at once.
        SystemExit: after `--help` and `--print_config`.
    """
    known = dict(leaves(recipe_class))
    require_sound([*_unknown_in_files(argv, known), *_unknown_options(argv, known)])
    parser = make_parser(recipe_class, prog)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = parser.instantiate(parser.parse_args(_files_first(argv)))
    except argparse.ArgumentError as error:
        raise UserError(_explain(str(error), known)) from None
    recipe = recipe_class(**{field.name: values[field.name] for field in dataclasses.fields(recipe_class)})  # type: ignore[arg-type]
    require_sound(problems(recipe))
    return recipe


def leaves(recipe_class: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a recipe class with its type, sections first to last."""
    hints = get_type_hints(recipe_class)
    for field in dataclasses.fields(recipe_class):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from leaves(kind, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{field.name}", kind


def load(path: Path, recipe_class: type[Recipe], *, problems: Callable[[Recipe], Iterable[str]]) -> Recipe:
    """Read the `config.yaml` of a run directory back into its recipe.

    Raises:
        UserError: the file is missing, unreadable, or not a recipe of this class.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; is {path.parent} the directory of a run?")
    return parse(["--config", str(path)], recipe_class, prog="mosgoat", problems=problems)


def _config_files(argv: Sequence[str]) -> Iterator[str]:
    for i, word in enumerate(argv):
        if word == "--config" and i + 1 < len(argv):
            yield argv[i + 1]
        elif word.startswith("--config="):
            yield word.removeprefix("--config=")


def _files_first(argv: Sequence[str]) -> list[str]:
    # jsonargparse lets the last word win, so that a file named behind an option would override it.
    files = [word for name in _config_files(argv) for word in ("--config", name)]
    return files + [
        word
        for i, word in enumerate(argv)
        if not (word == "--config" or word.startswith("--config=") or (i and argv[i - 1] == "--config"))
    ]


def _unknown_in_files(argv: Sequence[str], known: dict[str, Any]) -> Iterator[str]:
    for name in _config_files(argv):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"--config {name}: there is no such file")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise UserError(f"--config {name} cannot be read as YAML: {_one_line(str(error))}") from None
        if content is None:
            continue
        if not isinstance(content, dict):
            raise UserError(f"--config {name} holds a {type(content).__name__}; a recipe is made of `key: value` lines")
        for key, value in _flatten(content):
            if key not in known and not _is_whole_section(key, value, known):
                yield f"{name}: unknown key {key}={value!r}; {_suggest(key, known)}"


def _is_whole_section(key: str, value: Any, known: dict[str, Any]) -> bool:
    # An empty section (`data: {}` or `data:`) is no mistake; a value in its place is.
    return value in (None, {}) and any(other.startswith(f"{key}.") for other in known)


def _unknown_options(argv: Sequence[str], known: dict[str, Any]) -> Iterator[str]:
    own = {"--config", "--print_config", "--help", "-h"}
    for word in argv:
        option = word.split("=", 1)[0]
        if word.startswith("--") and option not in own and option[2:].removesuffix("+") not in known:
            yield f"unknown option {option}; {_suggest(option[2:], known)}"


def _suggest(key: str, known: dict[str, Any]) -> str:
    section, dot, _ = key.rpartition(".")
    in_section = [name for name in known if name.startswith(section + dot)] if dot else list(known)
    return did_you_mean(key, in_section or known)


def _flatten(content: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _explain(message: str, known: dict[str, Any]) -> str:
    """jsonargparse's report of a wrong type in one line: key, value, what is allowed."""
    key = re.search(r'[Kk]ey "([^"]+)"', message)
    if key is None or key[1] not in known:
        return _one_line(message)
    value = re.search(r"(?:Got value|Given value): (.*)", message)
    given = f"={value[1]}" if value else ""
    return f"{key[1]}{given} is not allowed: expected {describe_type(known[key[1]])}"


def describe_type(kind: Any) -> str:
    """A type in words: `int`, `one of lora, goat`, `float or null`."""
    origin = get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(kind))
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(part) for part in get_args(kind))
    if origin is list:
        return f"a list of {describe_type(get_args(kind)[0])}"
    names: dict[Any, str] = {type(None): "null", str: "text", bool: "true or false"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _one_line(text: str) -> str:
    return " ".join(text.split())
