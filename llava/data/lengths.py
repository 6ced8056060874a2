"""How many tokens each conversation takes: worked out once by all cores, kept, and mapped into memory afterwards."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from common.cache import fingerprint_of
from common.files import TEMPORARY, atomic_write, fsync_path
from common.training.loader import items_of
from common.training.order import IGNORED_LABEL
from llava.conversation import Encoded, Template, encode
from llava.data.rules import Row, turns_of
from llava.data.store import BATCH, ArrowRows, Rows
from llava.sections import SectionEncoder

COLUMNS = {"rows": np.int64, "text_tokens": np.int32, "supervised": np.int32, "has_image": np.bool_}


@dataclass(frozen=True)
class Coding:
    """All that turns a conversation into tokens.

    Args:
        tokenizer: of the language model.
        template: from `template_for`.
        image_token_id: token that stands for a part of the picture.
        image_tokens: how many of them a picture takes.
        max_text_tokens: longest allowed conversation without picture tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    image_token_id: int
    image_tokens: int
    max_text_tokens: int

    def encode(self, row: Row) -> Encoded | None:
        """A conversation with its loss mask, None where no answer fits."""
        return encode(
            turns_of(row.texts, row.image_turn),
            self.template,
            self.tokenizer,
            image_token_id=self.image_token_id,
            image_tokens=self.image_tokens,
            max_text_tokens=self.max_text_tokens,
        )

    def fingerprint(self) -> str:
        """Names everything that the numbers of tokens depend on beside the conversations."""
        sections = SectionEncoder(self.tokenizer, [self.image_token_id])
        return fingerprint_of(sections.fingerprint, asdict(self.template), self.max_text_tokens)


@dataclass
class Lengths:
    """What the pass found.

    Args:
        folder: where the columns are, one file each.
        shortened: conversations that lost rounds at their end.
        cut: conversations whose only answer was cut.
        too_long: rows without room for an answer, left out.
    """

    folder: Path
    shortened: int = 0
    cut: int = 0
    too_long: list[int] = field(default_factory=list)

    def column(self, name: str) -> np.ndarray:
        """One of `COLUMNS`, mapped into memory.

        Row number, tokens without those of the picture, supervised tokens, whether there is a picture; of every
        conversation that can be used.
        """
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")


def open_lengths(rows: Rows, pictures: ArrowRows, folder: Path, name: str, coding: Coding, workers: int) -> Lengths:
    """The lengths of all conversations that can be used, worked out first where they are not known yet.

    Args:
        rows: the conversations.
        pictures: the name of each row's picture, null where it has none or it cannot be used.
        folder: where the indices are kept; must be locked.
        name: names the pictures that can be used.
        coding: how conversations become tokens.
        workers: processes to use; 0: this one.
    """
    where = folder / f"lengths-{fingerprint_of(name, coding.fingerprint())[:16]}"
    known = _read(where)
    if known is not None:
        return known
    where.mkdir(exist_ok=True)
    chunks = _Chunks(rows, pictures, replace(coding, image_tokens=0))
    found: list[np.ndarray] = []
    total = Lengths(where)
    with tqdm(desc="counting tokens", total=len(rows), unit="", disable=None) as bar:
        for columns, shortened, cut, too_long in items_of(chunks, workers):
            found.append(columns)
            total.shortened += shortened
            total.cut += cut
            total.too_long += too_long
            bar.update(BATCH)
    columns = np.concatenate(found)  # (N, 4)
    for i, (key, kind) in enumerate(COLUMNS.items()):
        _save(where / f"{key}.npy", columns[:, i].astype(kind))
    content = {"shortened": total.shortened, "cut": total.cut, "too_long": total.too_long}
    atomic_write(where / "lengths.json", json.dumps(content))
    return total


def _read(where: Path) -> Lengths | None:
    try:
        found = Lengths(where, **json.loads((where / "lengths.json").read_text()))
        sizes = {len(found.column(name)) for name in COLUMNS}
    except (OSError, ValueError, TypeError):
        return None
    return found if len(sizes) == 1 else None


def _save(path: Path, column: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            np.save(file, column)
        fsync_path(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class _Chunks(Dataset[tuple[np.ndarray, int, int, list[int]]]):
    """Item i: the columns of the rows of batch i that can be used, and what was shortened, cut and left out."""

    def __init__(self, rows: Rows, pictures: ArrowRows, coding: Coding) -> None:
        self._rows, self._pictures, self._coding = rows, pictures, coding
        self._size = len(rows)

    def __len__(self) -> int:
        return -(-self._size // BATCH)

    def __getitem__(self, item: int) -> tuple[np.ndarray, int, int, list[int]]:
        if not 0 <= item < len(self):
            raise IndexError(item)
        columns: list[tuple[int, int, int, bool]] = []
        shortened, cut, too_long = 0, 0, []
        for row in range(item * BATCH, min((item + 1) * BATCH, self._size)):
            conversation = self._rows[row]
            if conversation.image is not None and self._pictures.value(row, "picture") is None:
                continue
            encoded = self._coding.encode(conversation)
            if encoded is None:
                too_long.append(row)
                continue
            supervised = sum(label != IGNORED_LABEL for label in encoded.labels)
            columns.append((row, len(encoded.input_ids), supervised, encoded.has_image))
            shortened += encoded.rounds < len(conversation.texts) // 2
            cut += encoded.cut
        return np.array(columns, dtype=np.int64).reshape(-1, len(COLUMNS)), shortened, cut, too_long
