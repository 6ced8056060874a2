"""What ships with the suite or is drawn on first use, by name: `builtin:drawn-sdxl`, `builtin:drawn-subject:NAME`."""

from __future__ import annotations

from pathlib import Path

from common.cache import cache_root, locked, mark_of_sources
from common.errors import UserError
from common.words import did_you_mean

PREFIX = "builtin:"
MODELS = {"drawn-sdxl": Path(__file__).resolve().parent / "base"}
SUBJECTS = "drawn-subject"


def model_path(name: str) -> Path:
    """The folder, in diffusers' form, of a shipped model.

    Args:
        name: `drawn-sdxl`, with or without `builtin:`.

    Raises:
        UserError: no model of this name ships.
    """
    short = name.removeprefix(PREFIX)
    if short not in MODELS:
        raise UserError(f"model.name={name} does not ship with mosgoat; {did_you_mean(short, MODELS)}")
    return MODELS[short]


def subject_path(name: str = SUBJECTS, cache_dir: str | None = None) -> Path:
    """The folder of a drawn character, or of all of them in the form of DreamBooth's published set.

    Args:
        name: `drawn-subject` for the folder with all of them (`dataset/NAME/*.png` and
            `dataset/prompts_and_classes.txt`), `drawn-subject:NAME` for one; with or without `builtin:`.
        cache_dir: where they are kept; None: `$MOSGOAT_CACHE` or `~/.cache/mosgoat`.

    Raises:
        UserError: no such character, or the cache cannot be written.
    """
    from common.write_errors import writing_is_explained
    from dreambooth.demo.characters import CHARACTERS, draw_characters

    known, _, character = name.removeprefix(PREFIX).partition(":")
    if known != SUBJECTS:
        raise UserError(f"data.path={name} does not ship with mosgoat; {did_you_mean(known, [SUBJECTS])}")
    if character and character not in CHARACTERS:
        raise UserError(f"data.path={name}: there is no such character; {did_you_mean(character, CHARACTERS)}")
    mark = mark_of_sources(Path(__file__).parent, "characters.py", "draw.py", "scenes.py")
    root = cache_root(cache_dir) / f"drawn-subjects-{mark}"
    if not (root / "done").is_file():
        with writing_is_explained(root):
            root.mkdir(parents=True, exist_ok=True)
            with locked(root, "the drawn characters"):
                if not (root / "done").is_file():  # another process may have drawn them meanwhile, and reads them
                    draw_characters(root)
    return root / "dataset" / character if character else root
