"""What ships with the suite so that it can show itself at once: drawn signs, a tiny base, `mosgoat vit demo`.

A recipe names the shipped files from any working directory: `model.name: builtin:signs-vit` and
`data.source: builtin:signs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common.errors import UserError
from common.words import did_you_mean

PREFIX = "builtin:"
_HERE = Path(__file__).resolve().parent
_MODELS = {"signs-vit": _HERE / "base"}
_DATA = {"signs": _HERE / "signs"}


def _resolve(key: str, value: str, known: Mapping[str, Path]) -> Path:
    name = value.removeprefix(PREFIX)
    if name not in known:
        raise UserError(f"{key}={PREFIX}{name} is not among what ships with mosgoat; {did_you_mean(name, known)}")
    folder = known[name]
    if not folder.is_dir():
        raise UserError(f"{key}={PREFIX}{name} should be in {folder}, which is missing; install mosgoat again")
    return folder


def builtin_model_dir(name: str) -> Path:
    """The folder of a shipped model, in the form that open_clip's `local-dir:` reads.

    Args:
        name: `signs-vit`, with or without the prefix `builtin:`.

    Raises:
        UserError: unknown name, or the files were not installed.
    """
    return _resolve("model.name", name, _MODELS)


def builtin_data_dir(name: str) -> Path:
    """The folder of a shipped data set, with `train/CLASS/*` and `test/CLASS/*`.

    Args:
        name: `signs`, with or without the prefix `builtin:`.

    Raises:
        UserError: unknown name, or the files were not installed.
    """
    return _resolve("data.source", name, _DATA)
