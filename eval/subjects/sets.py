"""The sets of generated pictures that are to be measured, and what is missing of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.pictures import ENDINGS
from dreambooth.manifest import Manifest, find_manifests, read_manifest

_SHOWN = 8


@dataclass(frozen=True)
class GeneratedSet:
    """The pictures that one adapter made of one subject, and real ones of it.

    Args:
        folder: where the generated ones lie.
        manifest: what they show.
        references: the real ones.
    """

    folder: Path
    manifest: Manifest
    references: tuple[Path, ...]

    def files(self) -> dict[tuple[int, int], Path]:
        """(prompt, seed) -> file, of those that are there."""
        files = {cell: self.folder / name for cell, name in self.manifest.by_cell().items()}
        return {cell: path for cell, path in sorted(files.items()) if path.is_file()}


def read_sets(roots: Sequence[Path], references: Path | None = None) -> list[GeneratedSet]:
    """Find all sets below some folders.

    Args:
        roots: from `mosgoat dreambooth generate --output`, or single adapters' or subjects' folders of it.
        references: a folder of real pictures, or with a folder of them for each subject; None: those of the manifests.

    Raises:
        UserError: there are none, two are of the same adapter and subject, or a subject has no real pictures.
    """
    sets: dict[tuple[str, str], GeneratedSet] = {}
    for folder in [folder for root in roots for folder in find_manifests(root)]:
        manifest = read_manifest(folder)
        key = (manifest.adapter, manifest.subject)
        if key in sets and sets[key].folder.resolve() != folder.resolve():
            raise UserError(
                f"{sets[key].folder} and {folder} both hold {manifest.subject} by {manifest.adapter}; leave one out, "
                "or give its manifest another `adapter`"
            )
        sets[key] = GeneratedSet(folder, manifest, find_references(manifest, folder, references))
    return list(sets.values())


def find_references(manifest: Manifest, folder: Path, references: Path | None) -> tuple[Path, ...]:
    """The real pictures of a subject.

    Raises:
        UserError: there are none.
    """
    if references is None:
        # relative ones lie relative to the manifest
        found = [folder / path for path in manifest.references]
        lost = [path for path in found if not path.is_file()]
        if lost or not found:
            what = f"{lost[0]} is not there" if lost else f"the manifest in {folder} names none"
            raise UserError(f"no real pictures of {manifest.subject}: {what}; give their folder as --references")
        return tuple(found)
    place = references / manifest.subject if (references / manifest.subject).is_dir() else references
    found = sorted(path for path in place.iterdir() if path.suffix.lower() in ENDINGS) if place.is_dir() else []
    if not found:
        raise UserError(
            f"--references={references} holds no pictures of {manifest.subject}: give a folder of pictures, or one "
            "that has a folder of them for each subject"
        )
    return tuple(found)


def missing_pictures(sets: Sequence[GeneratedSet]) -> list[str]:
    """What a whole comparison would have and these sets lack, in a line each: subjects, prompts, pictures."""
    adapters = list(dict.fromkeys(each.manifest.adapter for each in sets))
    subjects = list(dict.fromkeys(each.manifest.subject for each in sets))
    by_key = {(each.manifest.adapter, each.manifest.subject): each for each in sets}
    lines = []
    for adapter in adapters:
        for subject in subjects:
            here = by_key.get((adapter, subject))
            if here is None:
                lines.append(f"{adapter} has no pictures of {subject}, which others have")
                continue
            wanted, there = here.manifest.cells(), here.files()
            if lost := [cell for cell in wanted if cell not in there]:
                shown = ", ".join(f"prompt {prompt} seed {seed}" for prompt, seed in lost[:3])
                lines.append(
                    f"{here.folder} lacks {len(lost)} of {len(wanted)} pictures: {shown}{', ...' * (len(lost) > 3)}"
                )
    return lines + _unlike(subjects, adapters, by_key)


def _unlike(subjects: Sequence[str], adapters: Sequence[str], by_key: dict[tuple[str, str], GeneratedSet]) -> list[str]:
    lines = []
    for subject in subjects:
        here = [by_key[adapter, subject].manifest for adapter in adapters if (adapter, subject) in by_key]
        kinds = {(manifest.prompts, manifest.seeds) for manifest in here}
        if len(kinds) > 1:
            names = ", ".join(manifest.adapter for manifest in here)
            lines.append(f"{subject}: {names} have other prompts or seeds; only those that two share are compared")
    return lines


def require_whole(sets: Sequence[GeneratedSet], allow_incomplete: bool) -> list[str]:
    """What is missing, where that is allowed.

    Raises:
        UserError: something is missing, and it is not allowed.
    """
    lines = missing_pictures(sets)
    if lines and not allow_incomplete:
        more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise UserError(
            "not all pictures are there: "
            + "; ".join(lines[:_SHOWN])
            + more
            + ". Generate them (the same command goes "
            "on where it stopped), or give --allow-incomplete to measure what is there"
        )
    return lines
