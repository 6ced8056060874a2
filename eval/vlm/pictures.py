"""The pictures of a table: base64 cells, found in the file when they are asked for."""

from __future__ import annotations

import ast
import base64
import binascii
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from common.cores import usable_cores
from common.pictures import DecodeError, decode, verify
from eval.vlm.question import Index
from eval.vlm.tsv import read_cell

# A cell of at most so many characters names the row whose picture is meant (VLMEvalKit's rule).
LONGEST_REFERENCE = 64


class Place(NamedTuple):
    """Where a row with a picture of its own stands in the file, in bytes."""

    offset: int
    size: int


def is_list(cell: str) -> bool:
    """Whether a cell holds a list of pictures."""
    return cell.startswith("[") and cell.endswith("]")


def bytes_of(cell: str) -> list[bytes]:
    """The picture files in a cell: one as base64, or a Python list of such strings.

    Raises:
        DecodeError: it is neither.
    """
    texts = [cell]
    if is_list(cell):
        try:
            texts = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise DecodeError("the list of pictures cannot be read") from None
        if not texts or not all(isinstance(text, str) for text in texts):
            raise DecodeError("the list of pictures must hold base64 texts")
    try:
        return [base64.b64decode(text) for text in texts]
    except (binascii.Error, ValueError) as error:
        raise DecodeError(f"not base64: {error}") from None


@dataclass(frozen=True)
class Pictures:
    """The pictures of a table, left in its file until they are asked for.

    Args:
        path: of the table.
        column: where its records have their picture; None: nowhere.
        places: index of a row -> the record with its picture, which may be another row's.
        keys: index of a row -> hash of its picture's cell.
    """

    path: Path
    column: int | None
    places: Mapping[Index, Place]
    keys: Mapping[Index, bytes]

    def load(self, index: Index) -> list[Image.Image]:
        """The pictures of a row as upright 8-bit RGB, at least one.

        Raises:
            DecodeError: one cannot be read.
        """
        return [Image.fromarray(decode(data)) for data in self._bytes(index)]

    def check(self, indices: Sequence[Index], *, progress: bool) -> dict[Index, str]:
        """Decode pictures, on all cores.

        Threads do it as well as processes: Pillow's decoders let go of the interpreter's lock.

        Args:
            indices: of the rows whose pictures are looked at.
            progress: show a bar, where there is a terminal.

        Returns:
            index -> why its picture cannot be used, for those that cannot.
        """
        workers = ThreadPoolExecutor(max_workers=usable_cores())
        try:
            found = workers.map(self._problem, indices)
            off = None if progress else True
            bar = tqdm(found, "decoding pictures", total=len(indices), unit=" pictures", disable=off)
            return {index: reason for index, reason in zip(indices, bar, strict=True) if reason}
        finally:
            workers.shutdown(cancel_futures=True)  # an interrupt need not wait for thousands of pictures

    def _problem(self, index: Index) -> str:
        try:
            for data in self._bytes(index):
                verify(data)
        except DecodeError as error:
            return str(error)
        return ""

    def _bytes(self, index: Index) -> list[bytes]:
        assert self.column is not None
        return bytes_of(read_cell(self.path, *self.places[index], self.column))
