"""Reading sets of generated pictures: folders with `manifest.json`, and plain folders with equal file names."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.pictures import ENDINGS
from dreambooth.manifest import MANIFEST, Manifest, find_manifests, read_manifest


@dataclass(frozen=True, order=True)
class ItemKey:
    """What two pictures must share to be compared.

    Args:
        subject: whose pictures they are.
        name: the prompt, or the file's name in a plain folder.
        seed: of the noise; empty in a plain folder, where equal names say that the noise is the same.
    """

    subject: str
    name: str
    seed: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, [self.subject, repr(self.name), f"seed {self.seed}" if self.seed else ""]))


@dataclass(frozen=True)
class Source:
    """One generated picture.

    Args:
        path: its file.
        prompt: as the model was given it; empty where nobody told it.
        shown_prompt: as a rater reads it, without the word that means the subject.
    """

    path: Path
    prompt: str
    shown_prompt: str


@dataclass
class PictureSet:
    """The pictures of one method.

    Args:
        name: the method.
        pictures: what there is.
        references: subject -> pictures of the real one that a manifest names.
        settings: subject -> how they were sampled, as a manifest tells it.
        problems: what was left out, each with its reason.
    """

    name: str
    pictures: dict[ItemKey, Source] = field(default_factory=dict)
    references: dict[str, list[Path]] = field(default_factory=dict)
    settings: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, key: ItemKey, source: Source) -> None:
        """Take a picture in, or note that its place is taken."""
        if key in self.pictures:
            self.problems.append(f"{source.path}: {self.pictures[key].path.name} is {key} already")
        else:
            self.pictures[key] = source


def read_set(name: str, folder: Path, prompts: Mapping[str, str]) -> PictureSet:
    """The pictures that a folder holds.

    Args:
        name: the method.
        folder: what `mosgoat dreambooth generate` wrote for one adapter (of one subject or several), or any folder of
            pictures, in which each inner folder is a subject.
        prompts: picture name -> prompt, for a plain folder; see `read_prompts`.

    Raises:
        UserError: the folder is missing or holds no pictures, or those of several adapters.
    """
    if not folder.is_dir():
        raise UserError(f"--set {name}={folder}: there is no such folder")
    made = PictureSet(name)
    if any(next(folder.glob(f"{inner}{MANIFEST}"), None) for inner in ("", "*/", "*/*/")):
        _read_manifests(made, folder)
    else:
        _read_plain(made, folder, prompts)
    if not made.pictures and made.problems:
        raise UserError(f"--set {name}={folder}: none of its pictures can be taken: {made.problems[0]}")
    if not made.pictures:
        raise UserError(f"--set {name}={folder}: the folder holds no pictures ({', '.join(sorted(ENDINGS))})")
    return made


def _read_manifests(made: PictureSet, folder: Path) -> None:
    manifests = [(place, read_manifest(place)) for place in find_manifests(folder)]
    adapters = sorted({manifest.adapter for _, manifest in manifests})
    if len(adapters) > 1:
        words = " ".join(f"--set {adapter}={folder / adapter}" for adapter in adapters)
        raise UserError(f"--set {made.name}={folder} holds pictures of several adapters; name each: {words}")
    for place, manifest in manifests:
        _take_manifest(made, place, manifest)


def _take_manifest(made: PictureSet, place: Path, manifest: Manifest) -> None:
    missing = set(manifest.cells()) - set(manifest.by_cell())
    if missing:
        made.problems.append(f"{place}: {len(missing)} of {len(manifest.cells())} pictures have not been generated")
    for name, entry in sorted(manifest.pictures.items()):
        shown = manifest.class_text(entry.prompt)
        key = ItemKey(manifest.subject, shown, str(entry.seed))
        made.add(key, Source(place / name, manifest.prompt_text(entry.prompt), shown))
    made.references.setdefault(manifest.subject, [Path(path) for path in manifest.references])
    made.settings[manifest.subject] = manifest.settings


def _read_plain(made: PictureSet, folder: Path, prompts: Mapping[str, str]) -> None:
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if (
            path.suffix.lower() not in ENDINGS
            or any(part.startswith(".") for part in inner.parts)
            or not path.is_file()
        ):
            continue
        name = inner.with_suffix("").as_posix()
        prompt = prompts.get(name, prompts.get(inner.as_posix(), ""))
        if prompts and not prompt:
            made.problems.append(f"{path}: it has no line in the file of prompts")
            continue
        subject = "" if inner.parent == Path() else inner.parent.as_posix()
        made.add(ItemKey(subject, inner.stem), Source(path, prompt, prompt))


def read_prompts(file: Path | None) -> dict[str, str]:
    """The prompts of plain folders: a CSV file with the columns `picture` and `prompt`.

    Args:
        file: UTF-8, with a heading line; `picture` is the path within a set's folder, with or without its ending.

    Returns:
        picture -> prompt; empty without a file.

    Raises:
        UserError: the file is missing, is no UTF-8, lacks a column, or a line has no prompt.
    """
    if file is None:
        return {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            lines = list(csv.DictReader(handle))
    except FileNotFoundError:
        raise UserError(f"--prompts {file}: there is no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--prompts {file} cannot be read as CSV in UTF-8: {error}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 2):
        picture, prompt = (str(line.get(key) or "").strip() for key in ("picture", "prompt"))
        if not picture or not prompt:
            raise UserError(
                f"--prompts {file}, line {number}: the columns `picture` and `prompt` must both be filled in"
            )
        if found.setdefault(picture, prompt) != prompt:
            raise UserError(f"--prompts {file}, line {number}: {picture} has another prompt above; leave one line out")
    if not found:
        raise UserError(f"--prompts {file} has no lines below its heading; it needs the columns `picture` and `prompt`")
    return found


def find_references(folder: Path | None, sets: list[PictureSet]) -> dict[str, list[Path]]:
    """Pictures of the real subjects.

    Args:
        folder: `<subject>/*.jpg`, or pictures alone where there is one subject; None: those that manifests name.
        sets: the generated pictures.

    Returns:
        subject -> its pictures, in the order of their names; empty where no subject has any.

    Raises:
        UserError: some subjects have references and others have none.
    """
    subjects = sorted({key.subject for made in sets for key in made.pictures})
    if folder is None:
        found = {s: next((m.references[s] for m in sets if m.references.get(s)), []) for s in subjects}
    else:
        if not folder.is_dir():
            raise UserError(f"--references {folder}: there is no such folder")
        found = {subject: _pictures_in(folder / subject) if subject else [] for subject in subjects}
        if len(subjects) == 1 and not found[subjects[0]]:
            found = {subjects[0]: _pictures_in(folder)}
    without = [subject or "(the folder itself)" for subject, pictures in found.items() if not pictures]
    if folder is not None and len(without) == len(subjects):
        raise UserError(
            f"--references {folder} holds no pictures of {', '.join(without[:5])}; it needs <subject>/*.jpg"
        )
    if 0 < len(without) < len(subjects):
        raise UserError(
            f"there are no reference pictures of {', '.join(without[:5])}{' ...' if len(without) > 5 else ''}, of the "
            "other subjects there are; put them into the folder that --references names, as <subject>/*.jpg"
        )
    return {} if without else found


def _pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and path.is_file())
