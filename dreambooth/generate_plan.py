"""What `mosgoat dreambooth generate` is to make: runs → adapters, subjects and prompts; imports no model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import UserError
from dreambooth.config import PLACEHOLDERS, DataConfig, DreamboothRecipe
from dreambooth.data.prompts import NAME as PROMPTS_FILE
from dreambooth.data.prompts import read_prompts
from dreambooth.data.subjects import open_subject
from dreambooth.model_run import read_about, read_recipe

BASE = "base"
_TAKEN = ("grids", "grids.html")  # names in the output folder
_NAME = re.compile(r"[^\W.-][^/\\\0]*")


@dataclass(frozen=True)
class Target:
    """One adapter and one subject.

    Args:
        adapter: what the pictures are called by; `base` for the model without an adapter.
        run: directory of the run that teaches the subject; with the base model, of one that does.
        recipe: of that run.
        subject: its name.
        class_word: what it is.
        prompts: templates with `{token}` and `{class}`.
        references: its real pictures, as far as they are there still.
    """

    adapter: str
    run: Path
    recipe: DreamboothRecipe
    subject: str
    class_word: str
    prompts: tuple[str, ...]
    references: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where its pictures go, below the output."""
        return Path(self.adapter) / self.subject


def find_targets(
    words: Sequence[str], *, base: bool, prompts: Path | None, subjects: Sequence[str] | None = None
) -> list[Target]:
    """Everything that runs and prompts amount to.

    Args:
        words: `PATH` or `NAME=PATH`: a run, or a folder of runs of which each teaches a subject.
        base: whether the model without an adapter makes pictures, too, once for each subject.
        prompts: file of prompts; None: the data set's own beside the subject's pictures.
        subjects: which of them; None: all.

    Raises:
        UserError: a run that cannot be used, two of the same name, or no prompts.
    """
    found: dict[Path, Target] = {}
    for word in words:
        for adapter, run in _runs(word):
            target = _target(adapter, run, prompts)
            if base and adapter == BASE:
                raise UserError(
                    f"--run {word} is called {BASE}, as the model without an adapter is; give it as NAME=PATH"
                )
            if target.folder in found and found[target.folder].run.resolve() != run.resolve():
                raise UserError(
                    f"{found[target.folder].run} and {run} are both called {adapter} and teach {target.subject}; give "
                    "one of them another name: --run NAME=PATH"
                )
            found[target.folder] = target
    targets = list(found.values())
    known = list(dict.fromkeys(target.subject for target in targets))
    if unknown := [name for name in subjects or () if name not in known]:
        raise UserError(f"--subjects {' '.join(unknown)}: no run teaches that; the runs teach {', '.join(known)}")
    targets = [target for target in targets if subjects is None or target.subject in subjects]
    return [*_of_base(targets), *targets] if base else targets


def _of_base(targets: Sequence[Target]) -> list[Target]:
    """The base model's share: the same subjects and prompts, the token included, which means nothing to it."""
    first: dict[str, Target] = {}
    for target in targets:
        other = first.setdefault(target.subject, target)
        same = ("class_word", "prompts")
        if other.recipe.model != target.recipe.model or any(getattr(other, k) != getattr(target, k) for k in same):
            raise UserError(
                f"{other.run} and {target.run} teach {target.subject} to another model, or with another class word or "
                f"prompts: there is no single {BASE} for both; generate for one of them at a time"
            )
    return [replace(target, adapter=BASE) for target in first.values()]


def _runs(word: str) -> Iterator[tuple[str, Path]]:
    name, sign, rest = word.partition("=")
    # a path may hold an equals sign
    path = Path(rest if sign and not Path(word).exists() else word).expanduser()
    given = name if str(path) != str(Path(word).expanduser()) else ""
    if not path.is_dir():
        raise UserError(f"--run {word}: there is no folder {path}; give the directory of a run, or NAME=DIRECTORY")
    path = path.resolve()
    if (path / "config.yaml").is_file():
        about = read_about(path)
        # a run in a folder of runs is called after the folder, as when that is given
        yield _sound(given or (path.parent.name if path.name == about.get("subject") else path.name), word), path
        return
    runs = [child for child in sorted(path.iterdir()) if (child / "config.yaml").is_file()]
    if not runs:
        raise UserError(
            f"--run {word}: {path} is no run and holds none: there is no config.yaml in it or in its folders"
        )
    for run in runs:
        yield _sound(given or path.name, word), run


def _sound(name: str, word: str) -> str:
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise UserError(f"--run {word}: {name!r} cannot be the name of a folder; give --run NAME=PATH")
    return name


def _target(adapter: str, run: Path, prompts: Path | None) -> Target:
    recipe, about = read_recipe(run), read_about(run)
    subject, word = about.get("subject"), about.get("class_word")
    if not isinstance(subject, str) or not isinstance(word, str) or not _NAME.fullmatch(subject):
        raise UserError(f"{run}: its subject {subject!r} or class word {word!r} is not known; was the run changed?")
    folder, references = _pictures(recipe.data)
    templates = read_templates(prompts, word) if prompts is not None else _own_prompts(folder, word, run)
    return Target(adapter, run, recipe, subject, word, templates, references)


def _pictures(config: DataConfig) -> tuple[Path | None, tuple[str, ...]]:
    """Where a run's pictures lie and what they are; nothing where they are gone, which does not hinder generation."""
    try:
        subject = open_subject(config)
    except UserError:
        return None, ()
    return subject.folder, tuple(str(picture.path.resolve()) for picture in subject.pictures)


def _own_prompts(folder: Path | None, class_word: str, run: Path) -> tuple[str, ...]:
    for place in (folder.parent, folder) if folder is not None else ():
        if (place / PROMPTS_FILE).is_file():
            return read_templates(place / PROMPTS_FILE, class_word)
    raise UserError(
        f"there is no {PROMPTS_FILE} beside the pictures that {run} was trained on; give --prompts FILE: DreamBooth's "
        "own, or one prompt a line with {token} and {class}"
    )


def read_templates(file: Path, class_word: str) -> tuple[str, ...]:
    """The prompts of a file.

    Args:
        file: DreamBooth's `prompts_and_classes.txt`, of which the list for the class is taken; or one prompt a line, in
            which `{token}` and `{class}` are filled in. Empty lines and lines that begin with # are passed over.
        class_word: what the subject is.

    Raises:
        UserError: it cannot be read, holds no prompt, or one that is not sound.
    """
    if file.name == PROMPTS_FILE:
        found = read_prompts(file).prompts_of(class_word)
    else:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts={file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise UserError(f"--prompts={file} holds no prompt for the class {class_word}")
    for number, prompt in enumerate(found, start=1):
        for name in re.findall(r"\{([^{}]*)\}", prompt):
            if name not in PLACEHOLDERS:
                raise UserError(
                    f"--prompts={file}, prompt {number}: {{{name}}} is not filled in; {{token}} and {{class}} are"
                )
        if prompt in found[: number - 1]:
            raise UserError(f"--prompts={file}: prompt {number} is there twice: {prompt}")
    return tuple(found)
