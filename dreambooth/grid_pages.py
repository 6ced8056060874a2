"""Grids of generated pictures, subjects × prompts × seeds × adapters: a PNG for each subject, and one HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from common.cores import usable_cores
from common.files import atomic_write
from common.pictures import DecodeError, decode, encoded
from common.reporting.page import Block, Facts, Figure, Figures, Page, Section, write_page
from dreambooth.grid import Columns, SheetRow, draw_sheet, thumbnail
from dreambooth.manifest import Manifest, find_manifests, read_manifest

GRIDS, PAGE = "grids", "grids.html"
REAL = "real pictures"
_MANY = 12  # columns from which thumbnails are smaller
_REFERENCES = 8  # real pictures of a subject that are shown at most
_KEPT = 256  # side of what is kept of a picture in memory while its sheets are drawn
PictureSet = tuple[Path, Manifest]  # a folder and its manifest


def write_grids(root: Path) -> list[Path]:
    """Draw everything that a folder of generated pictures holds.

    `grids/SUBJECT.png` has a row for each prompt and a column for each adapter and seed, under the real pictures;
    `grids.html` shows the same with a small sheet for each prompt, adapters below each other.

    Args:
        root: the folder that `mosgoat dreambooth generate --output` names.

    Returns:
        The files, the page first.

    Raises:
        UserError: there are no pictures.
    """
    subjects = by_subject(find_manifests(root))
    files, sections = [], []
    for subject, sets in subjects.items():
        album = Album(sets)
        file = root / GRIDS / f"{subject}.png"
        _save(file, subject_sheet(sets, album))
        files.append(file)
        sections.append(Section(subject, subject_blocks(root, sets, album), folded=len(subjects) > 3))
    page = Page(
        title="Generated pictures",
        lead=(
            "Pictures below each other come from the same noise: what differs between them is the adapter's doing."
            if any(len(sets) > 1 for sets in subjects.values())
            else "Every prompt from the same few seeds."
        ),
        sections=sections,
    )
    return [write_page(root / PAGE, page), *files]


def by_subject(folders: Iterable[Path]) -> dict[str, list[PictureSet]]:
    """Subject -> folder and manifest of each adapter, the base first."""
    found: dict[str, list[PictureSet]] = {}
    for folder in folders:
        manifest = read_manifest(folder)
        found.setdefault(manifest.subject, []).append((folder, manifest))
    for sets in found.values():
        sets.sort(key=lambda each: (each[1].adapter != "base", each[1].adapter))
    return found


class Album:
    """The pictures of one subject, each read once and made small; one that cannot be read is as good as missing.

    Args:
        sets: folder and manifest of each adapter.
    """

    def __init__(self, sets: Sequence[PictureSet], references: int = 8) -> None:
        folder, manifest = sets[0]
        real = [folder / path for path in manifest.references[:_REFERENCES]]
        paths = [*real, *(folder / name for folder, manifest in sets for name in manifest.pictures)]
        with ThreadPoolExecutor(usable_cores()) as pool:
            self._pictures = dict(zip(paths, pool.map(_open, paths), strict=True))
        self.real = [picture for path in real if (picture := self._pictures[path]) is not None]

    def picture(self, each: PictureSet, prompt: str, seed: int) -> Image.Image | None:
        """What an adapter made of a prompt and a seed; None where it is missing."""
        folder, manifest = each
        if prompt not in manifest.prompts:
            return None
        name = manifest.by_cell().get((manifest.prompts.index(prompt), seed))
        return None if name is None else self._pictures[folder / name]


def subject_sheet(sets: Sequence[PictureSet], album: Album) -> Image.Image:
    """All pictures of one subject: a row for each prompt, a column for each adapter and seed.

    Args:
        sets: folder and manifest of each adapter.
        album: their pictures.
    """
    prompts, seeds = _prompts(sets), _seeds(sets)
    columns = [Columns(manifest.adapter, [f"seed {seed}" for seed in seeds]) for _, manifest in sets]
    rows = _real_rows(album, len(columns) * len(seeds))
    rows += [
        SheetRow(_shown(sets, prompt), [album.picture(each, prompt, seed) for each in sets for seed in seeds])
        for prompt in prompts
    ]
    first = sets[0][1]
    side = 128 if len(columns) * len(seeds) <= _MANY else 96
    return draw_sheet(columns, rows, side=side, title=f"{first.subject} ({first.class_word})")


def subject_blocks(root: Path, sets: Sequence[PictureSet], album: Album, most: int | None = None) -> list[Block]:
    """One subject for a page: what it is, its real pictures, and a small sheet for each prompt.

    Args:
        root: the sheets are written below it.
        sets: folder and manifest of each adapter.
        album: their pictures.
        most: sheets of so many prompts only; None: of all.
    """
    first, seeds = sets[0][1], _seeds(sets)
    figures = []
    for number, prompt in enumerate(_prompts(sets)[:most]):
        rows = [SheetRow(each[1].adapter, [album.picture(each, prompt, seed) for seed in seeds]) for each in sets]
        sheet = draw_sheet([Columns("", [f"seed {seed}" for seed in seeds])], rows, side=112)
        file = root / GRIDS / first.subject / f"{number:02}.webp"
        _save(file, sheet)
        text = _shown(sets, prompt)
        figures.append(Figure(file, f"{text}: {len(seeds)} seeds by {len(sets)} adapters", text))
    facts = {"class word": first.class_word, "token": first.token, "adapters": ", ".join(m.adapter for _, m in sets)}
    blocks: list[Block] = [Facts(facts)]
    real = _real_rows(album, 6)
    if real:
        file = root / GRIDS / first.subject / "real.webp"
        _save(file, draw_sheet([Columns("", [""] * len(real[0].pictures))], real, side=112))
        blocks.append(Figures([Figure(file, f"real pictures of {first.subject}", "what it was taught from")], 300))
    return [*blocks, Figures(figures, 480)]


def _real_rows(album: Album, most: int) -> list[SheetRow]:
    return [SheetRow(REAL, album.real[:most], labelled=False)] if album.real else []


def _prompts(sets: Iterable[PictureSet]) -> list[str]:
    return list(dict.fromkeys(prompt for _, manifest in sets for prompt in manifest.prompts))


def _seeds(sets: Iterable[PictureSet]) -> list[int]:
    return sorted({seed for _, manifest in sets for seed in manifest.seeds})


def _shown(sets: Sequence[PictureSet], prompt: str) -> str:
    manifest = next(manifest for _, manifest in sets if prompt in manifest.prompts)
    return manifest.prompt_text(manifest.prompts.index(prompt))


def _open(path: Path) -> Image.Image | None:
    try:
        picture = Image.fromarray(decode(path.read_bytes()))
    except (OSError, DecodeError):
        return None
    return picture if max(picture.size) <= _KEPT else thumbnail(picture, _KEPT)


def _save(file: Path, sheet: Image.Image) -> None:
    options = {"quality": 85} if file.suffix == ".webp" else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, encoded(sheet, file.suffix[1:].upper(), **options))
