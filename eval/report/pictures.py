"""Pictures that `mosgoat dreambooth generate` has made, adapters below each other."""

from __future__ import annotations

from pathlib import Path

from common.reporting.page import Block, Heading, Section, Text
from common.reporting.sections import shown
from dreambooth.grid_pages import Album, by_subject, subject_blocks
from eval.report.find import Material

SUBJECTS, PROMPTS = 6, 6  # on one page; `mosgoat dreambooth generate` makes a page of all


def pictures_section(material: Material, plots: Path) -> Section | None:
    """A sheet for each prompt of each subject."""
    roots: dict[Path, list[Path]] = {}
    for folder in material.pictures:
        roots.setdefault(folder.parent.parent, []).append(folder)  # ROOT/ADAPTER/SUBJECT
    found = [(root, sets) for root, folders in roots.items() for sets in by_subject(folders).values()]
    some, note = shown(found, SUBJECTS, "subjects")
    blocks: list[Block] = [*note]
    for number, (root, sets) in enumerate(some):
        manifest = sets[0][1]
        blocks.append(Heading(f"{manifest.subject}, from {root}"))
        blocks += subject_blocks(plots / str(number), sets, Album(sets), PROMPTS)
        prompts = len({prompt for _, each in sets for prompt in each.prompts})
        if prompts > PROMPTS:
            blocks.append(Text(f"The first {PROMPTS} of {prompts} prompts; {root / 'grids.html'} shows all."))
        if len(sets) > 1:
            blocks.append(Text("Pictures below each other come from the same noise, if their settings are the same."))
    return Section("Generated pictures", blocks) if blocks else None
