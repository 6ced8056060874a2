"""A small LLaVA and drawn questions that ship with the suite.

A recipe names them from any working directory: `model.name: builtin:drawn-llava` and
`data.path: builtin:drawn-questions`.
"""

from __future__ import annotations

from pathlib import Path

from common.cache import cache_root, locked, mark_of_sources
from common.errors import UserError
from common.words import did_you_mean

PREFIX = "builtin:"
MODELS = {"drawn-llava": Path(__file__).resolve().parent / "base"}
# the files that `llava.demo.draw.write_sets` makes
DATA = {"drawn-questions": "train.json", "drawn-questions-test": "test.json"}


def model_folder(name: str) -> Path:
    """The folder of a shipped model, for its name with or without `builtin:`; an unknown name is a `UserError`."""
    return MODELS[_known(name, MODELS, "model.name")]


def data_file(name: str, cache_dir: str | None = None) -> Path:
    """The JSON file of a drawn set, drawn on first use; an unknown name is a `UserError`.

    Args:
        name: `drawn-questions` or `drawn-questions-test`, with or without `builtin:`.
        cache_dir: where it is kept; None: `$MOSGOAT_CACHE` or `~/.cache/mosgoat`.
    """
    file = DATA[_known(name, DATA, "data.path")]
    return drawn_sets(cache_dir) / file


def drawn_sets(cache_dir: str | None = None) -> Path:
    """The folder with the drawn sets, drawn on first use (about ten seconds).

    Raises:
        UserError: the cache cannot be written, or is full.
    """
    from common.write_errors import writing_is_explained
    from llava.demo.draw import write_sets

    folder = sets_folder(cache_root(cache_dir))
    if not (folder / "done.json").is_file():
        with writing_is_explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder, "the drawn questions"):
                # once more: another process may have drawn them meanwhile, and reads them
                if not (folder / "done.json").is_file():
                    write_sets(folder)
    return folder


def sets_folder(cache: Path) -> Path:
    """Where in a cache the drawn sets lie; another place for each version of what draws them."""
    return cache / f"drawn-questions-{mark_of_sources(Path(__file__).parent, 'draw.py', 'scenes.py')}"


def _known(name: str, table: dict[str, Path] | dict[str, str], key: str) -> str:
    short = name.removeprefix(PREFIX)
    if short not in table:
        raise UserError(f"{key}={name} does not ship with mosgoat; {did_you_mean(short, table)}")
    return short
