"""A file of conversations → its rows, one after the other: a JSON list, or JSON lines.

The file is never held in memory as a whole: the 1 GB of LLaVA's mix would become several as Python objects.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from common.errors import UserError

# Text read at once; a row that is longer is read in doubling steps.
CHUNK = 1 << 22
# A row of more characters is a mistake, such as a quotation mark that is missing in the middle of the file.
LONGEST_ROW = 1 << 26
# Characters at the end of a chunk at which the longest literal (-Infinity) or escape (\\uD83D\\uDE00) may be cut.
_CUT = 16

_BEGINNINGS = {
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"PAR1": "a parquet file; convert it to JSON first",
    b"\xff\xfe": "text in UTF-16; convert it to UTF-8",
    b"\xfe\xff": "text in UTF-16; convert it to UTF-8",
}


class Record(NamedTuple):
    """One row of a file.

    Args:
        line: where it begins, from 1.
        value: what it says, None where it cannot be read.
        problem: why it cannot be read.
    """

    line: int
    value: Any
    problem: str | None = None


def read_records(path: Path, key: str = "data.path", on_bytes: Callable[[int], Any] | None = None) -> Iterator[Record]:
    """The rows of a JSON list, or of JSON lines, in constant memory.

    A line of a JSON-lines file that is no JSON is given with its problem; in a JSON list nothing behind a fault can be
    told apart, so that it is an error.

    Args:
        path: UTF-8 text, with or without a byte-order mark.
        key: the option that names the file, for messages.
        on_bytes: called with the number of bytes just read.

    Raises:
        UserError: no such file, not a file, not readable, empty, not UTF-8, neither a list nor lines of JSON, cut
            short, or with a fault; the message names line and column.
    """
    if not path.is_file():
        kind = "is a folder; give the JSON file in it" if path.is_dir() else "is not there"
        raise UserError(f"{key}={path} {kind}" if not path.exists() or path.is_dir() else f"{key}={path} is no file")
    try:
        with path.open("rb") as file:
            beginning = file.peek(16)
            for bytes_, kind in _BEGINNINGS.items():
                if beginning.startswith(bytes_):
                    raise UserError(f"{key}={path} is {kind}")
            yield from _records(file, f"{key}={path}", on_bytes or (lambda _: None))
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {error.strerror or error}") from error


def _records(file: IO[bytes], name: str, on_bytes: Callable[[int], Any]) -> Iterator[Record]:
    text = _Text(file, name, on_bytes)
    first = text.peek()
    if not first:
        raise UserError(f"{name} is empty")
    if first == "[":
        yield from _list(text)
    elif first == "{":
        yield from _lines(text)
    else:
        text.fail(f"begins with {first!r}; it must be a JSON list of conversations, or one JSON object a line")


def _list(text: _Text) -> Iterator[Record]:
    text.step()
    rows = 0
    while (mark := text.peek()) != "]":
        if rows:
            if mark != ",":
                text.expect("',' or ']'")
            text.step()
            if text.peek() in ("]", ""):
                text.expect("a conversation behind the comma")
        line = text.line
        yield Record(line, text.value(rows))
        rows += 1
    text.step()
    if text.peek():
        text.fail("something follows the end of the list")


def _lines(text: _Text) -> Iterator[Record]:
    decoder = _decoder()
    for number, (line, content) in enumerate(text.lines()):
        try:
            value = decoder.decode(content)
        except RecursionError:
            yield Record(line, None, "not JSON: nested too deeply")
        except json.JSONDecodeError as error:
            if number == 0:
                text.fail(f"line {line} is no whole JSON object ({error.msg}, column {error.colno}); each line must be")
            yield Record(line, None, f"not JSON: {error.msg} at column {error.colno}")
        else:
            yield Record(line, value)


def _decoder() -> json.JSONDecoder:
    # Python refuses to read numbers of thousands of digits; no row needs their value.
    return json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < 100 else float(digits))


class _Text:
    """A cursor in a text file that is read piece by piece."""

    def __init__(self, file: IO[bytes], name: str, on_bytes: Callable[[int], Any]) -> None:
        self._file, self._name, self._on_bytes = file, name, on_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = _decoder()
        self._text, self._at, self._bytes, self._ended = "", 0, 0, False
        # Newlines before `_counted`; characters of the line that were forgotten with earlier pieces.
        self._lines, self._counted, self._columns = 0, 0, 0

    @property
    def line(self) -> int:
        """The line of the cursor, from 1."""
        self._count()
        return self._lines + 1

    def peek(self) -> str:
        """The next character that is no white space, "" at the end of the file; the cursor is put on it."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def step(self) -> None:
        """Move the cursor on by one character."""
        self._at += 1

    def value(self, row: int) -> Any:
        """The JSON value at the cursor, which is moved behind it."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                self.fail(f"row {row} is nested too deeply")
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _CUT
                if cut and len(self._text) - self._at > LONGEST_ROW:
                    self.fail(f"row {row} has no end within {LONGEST_ROW:,} characters ({error.msg.lower()})")
                if cut and self._more():
                    continue
                if cut:
                    self.fail(f"the file ends within row {row}, which begins here: it is cut short; fetch it again")
                self._at = error.pos
                self.fail(f"row {row} is no JSON: {error.msg}")
            else:
                # At the end of a piece, 12 may be the beginning of 123.
                if end == len(self._text) and self._more():
                    continue
                self._at = end
                return value

    def lines(self) -> Iterator[tuple[int, str]]:
        """The lines from the cursor on that are not blank, each with its number."""
        number = self.line
        searched = self._at
        while True:
            end = self._text.find("\n", searched)
            if end < 0:
                searched = len(self._text)
                if searched - self._at > LONGEST_ROW:
                    self.fail(f"the line has no end within {LONGEST_ROW:,} characters")
                searched -= self._at
                if self._more():
                    searched += self._at
                    continue
                if self._text[self._at :].strip():
                    yield number, self._text[self._at :].strip()
                return
            content = self._text[self._at : end].strip()
            self._at = searched = end + 1
            if content:
                yield number, content
            number += 1

    def expect(self, what: str) -> NoReturn:
        """Complain that `what` is missing at the cursor."""
        found = self.peek()
        if not found:
            self.fail(f"the file ends where {what} must follow: it is cut short; fetch it again")
        self.fail(f"{what} must follow, not {found!r}")

    def fail(self, problem: str) -> NoReturn:
        """Raise a UserError that names the cursor's line and column."""
        line = self.line
        self._drop()
        raise UserError(f"{self._name}, line {line}, column {self._columns + 1}: {problem}")

    def _count(self) -> None:
        self._lines += self._text.count("\n", self._counted, self._at)
        self._counted = self._at

    def _drop(self) -> None:
        """Forget the text before the cursor, but for the number of its lines."""
        self._count()
        newline = self._text.rfind("\n", 0, self._at)
        self._columns = self._at + self._columns if newline < 0 else self._at - newline - 1
        self._text, self._at, self._counted = self._text[self._at :], 0, 0

    def _more(self) -> bool:
        """Read another piece; False at the end of the file."""
        if self._ended:
            return False
        self._drop()
        data = self._file.read(max(CHUNK, len(self._text)))
        self._ended = not data
        self._bytes += len(data)
        self._on_bytes(len(data))
        try:
            self._text += self._utf8.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            at = self._bytes - len(error.object) + error.start
            raise UserError(f"{self._name} is not UTF-8 text: {error.reason} at byte {at:,}") from None
        return bool(data)
