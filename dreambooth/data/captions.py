"""Captions of single pictures: `NAME.txt` beside a picture, or `metadata.jsonl` in its folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.pictures import ENDINGS

METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Captions:
    """The captions of a folder.

    Args:
        texts: name of a picture -> its caption, as it is written, but for white space.
        sources: names of the files that they come from.
    """

    texts: dict[str, str]
    sources: list[str]

    @property
    def files(self) -> frozenset[str]:
        """Names of the files that they come from."""
        return frozenset(self.sources)

    def unknown(self, pictures: Iterable[str]) -> list[str]:
        """Names that have a caption and are not among `pictures`."""
        known = set(pictures)
        return [name for name in self.texts if name not in known]


def read(folder: Path) -> Captions:
    """Read a folder's captions; of a picture with both forms the text file counts.

    Raises:
        UserError: a file that cannot be read, or a line that is not of the form.
    """
    texts: dict[str, str] = {}
    sources = []
    metadata = folder / METADATA
    if metadata.is_file():
        texts |= _metadata(metadata)
        sources.append(METADATA)
    for picture in sorted(folder.iterdir()):
        file = picture.with_suffix(".txt")
        if picture.suffix.lower() in ENDINGS and file.is_file():
            sources.append(file.name)
            if text := _plain(_read(file)):
                texts[picture.name] = text
    return Captions(texts, sources)


def _metadata(file: Path) -> dict[str, str]:
    texts = {}
    for number, line in enumerate(_read(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
        except (ValueError, KeyError, TypeError):
            name = text = None
        if not isinstance(name, str) or not isinstance(text, str):
            raise UserError(
                f"{file}, line {number}: {line[:80]!r} is not of the form "
                '{"file_name": "01.jpg", "text": "a photo of {token} {class}"}'
            )
        if _plain(text):
            texts[name] = _plain(text)
    return texts


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error


def _plain(text: str) -> str:
    return " ".join(text.split())
