"""Reading VLMEvalKit's TSV files record by record: hundreds of megabytes of base64 are never held in memory.

The files are what `pandas.to_csv(sep="\\t")` writes: UTF-8, a cell in double quotes where it holds a tab, a line break
or a quote. Every cell is text: `NA`, `None` and `nan` are words like any others, and only an empty cell is missing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from common.errors import UserError

# A quote that is opened by mistake would else swallow the rest of the file.
LONGEST_CELL = 1 << 28
_QUOTE = b'"'
csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))  # its default is shorter than a picture


class Record(NamedTuple):
    """One record of a file.

    Args:
        line: number of its first line, counted from 1.
        offset: where it begins, in bytes.
        size: how long it is, in bytes.
        cells: its text.
    """

    line: int
    offset: int
    size: int
    cells: list[str]


def read_records(file: BinaryIO, name: str, on_bytes: Callable[[bytes], None] = lambda data: None) -> Iterator[Record]:
    """The records of a file, empty lines left out.

    Args:
        file: at its beginning.
        name: of the file, for messages.
        on_bytes: is given the bytes of every record as they are read.

    Raises:
        UserError: it is not UTF-8, or a quoted cell never ends.
    """
    lines = _Lines(file)
    while True:
        first, number, offset = lines.read(), lines.number, lines.offset
        if not first:
            return
        taken = [first]
        try:
            if _QUOTE in first:
                cells = _quoted(first, lines, taken)
            else:
                cells = _text(first, number == 1).rstrip("\r\n").split("\t")
        except csv.Error as error:
            raise UserError(f"{name}, line {number}: {_explained(error, lines.number)}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{name}, line {lines.number} is not UTF-8 text: {error.reason}") from None
        data = b"".join(taken)
        on_bytes(data)
        if cells != [""]:
            yield Record(number, offset, len(data), cells)


def cells_of(data: bytes) -> list[str]:
    """The cells of one record, from the bytes that `Record.offset` and `Record.size` point out."""
    if _QUOTE not in data:
        return _text(data, True).rstrip("\r\n").split("\t")
    return next(csv.reader(io.StringIO(_text(data, True)), delimiter="\t", strict=True))


def read_cell(path: Path, offset: int, size: int, column: int) -> str:
    """One cell of a record that was read before."""
    with path.open("rb") as file:
        file.seek(offset)
        return cells_of(file.read(size))[column]


class _Lines:
    """Lines of a file, with where the newest one stands."""

    def __init__(self, file: BinaryIO) -> None:
        self.number = 0
        self.offset = 0
        self._file = file
        self._end = 0

    def read(self) -> bytes:
        """The next line; b"" at the end."""
        line = self._file.readline(LONGEST_CELL)
        self.number += bool(line)
        self.offset, self._end = self._end, self._end + len(line)
        return line


def _quoted(first: bytes, lines: _Lines, taken: list[bytes]) -> list[str]:
    def texts() -> Iterator[str]:
        yield _text(first, lines.number == 1)
        while line := lines.read():
            taken.append(line)
            yield _text(line, False)

    return next(csv.reader(texts(), delimiter="\t", strict=True))


def _text(line: bytes, may_have_mark: bool) -> str:
    return line.decode("utf-8-sig" if may_have_mark else "utf-8")


def _explained(error: csv.Error, last: int) -> str:
    if "unexpected end of data" in str(error) or "field limit" in str(error):
        return f"a quoted cell has no end (read up to line {last}): the file is cut short; fetch it again"
    return f"{error}; the table must be as pandas writes it with a tab between cells"
