"""A benchmark's table: VLMEvalKit's TSV file, read and checked whole before a model is asked anything.

Pictures stay in the file until they are asked for. Every cell is text: `None`, `NA` and `nan` are words; only an empty
cell is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from PIL import Image
from tqdm import tqdm

from common.errors import UserError
from eval.vlm.benchmarks import DRAWN, Benchmark, find_benchmark
from eval.vlm.drawn import drawn_table, is_drawn, require_drawn
from eval.vlm.pictures import LONGEST_REFERENCE, Pictures, Place, is_list
from eval.vlm.question import Index, Question, whole_number
from eval.vlm.rows import CUT, Columns, Findings, columns_of, question_of
from eval.vlm.tsv import Record, read_records

_ROOT = "LMUData"  # VLMEvalKit's variable
Trouble = Callable[[str, Question], None]


@dataclass(frozen=True)
class Table:
    """A benchmark's questions.

    Args:
        path: the file.
        benchmark: what it is a table of.
        questions: its rows, in order.
        report: in a line each what is odd about it, with the rows; none of it hinders an evaluation.
        fingerprint: hash of the file's content.
        has_answers: whether any row says what is right (test sets may not).
    """

    path: Path
    benchmark: Benchmark
    questions: Sequence[Question]
    report: Sequence[str]
    fingerprint: str
    has_answers: bool
    _pictures: Pictures
    _indices: frozenset[Index]

    def picture(self, question: Question) -> Image.Image:
        """A question's picture, upright 8-bit RGB; the first where a row has several, as LLaVA looks at one.

        Raises:
            common.pictures.DecodeError: it cannot be read, which `read_table` has made sure of unless told not to.
        """
        return self.pictures(question)[0]

    def pictures(self, question: Question) -> list[Image.Image]:
        """All pictures of a question, at least one."""
        return self._pictures.load(question.index)

    def picture_key(self, question: Question) -> bytes:
        """Hash of a question's picture; equal for equal cells, whatever row they are in."""
        return self._pictures.keys[question.index]

    def key(self, value: Any) -> Index | None:
        """`value`, a number or text, as this table names its rows; None: there is no such row."""
        for name in (whole_number(value), value if isinstance(value, str) else None):
            if name is not None and name in self._indices:
                return name
        return None


@dataclass(frozen=True)
class _Row:
    question: Question
    place: Place
    reference: str  # the row whose picture is meant, "" for its own or none
    key: bytes  # hash of its own picture, b"" without


@dataclass(frozen=True)
class _Cells:
    record: Record  # without its picture
    name: str  # the index as it is written
    reference: str
    key: bytes
    several: bool  # pictures


@dataclass(frozen=True)
class _Content:
    columns: Columns
    rows: Sequence[_Cells]
    fingerprint: str
    ends_well: bool  # the last line has its line break


def find_table(name: str, data: Path | None = None) -> Path:
    """Where a benchmark's table lies.

    Args:
        name: of the benchmark.
        data: the file, or a folder that holds `NAME.tsv`; None: `$LMUData`, else `~/LMUData`, as VLMEvalKit does;
            `builtin:drawn-mmbench`: the table that ships with the suite, in which case `name` must say so too.

    Raises:
        UserError: there is no such file; the message says how to fetch it.
    """
    benchmark = find_benchmark(name)
    if is_drawn(data):
        require_drawn(benchmark)
    if benchmark == DRAWN and (data is None or not data.is_file()):  # whatever else is given is of other benchmarks
        return drawn_table()
    root = (data or Path(os.environ.get(_ROOT) or "~/LMUData")).expanduser()
    path = root / benchmark.file_name if data is None or root.is_dir() else root
    if path.is_file():
        return path
    looked = f"--data={data}" if data else f"${_ROOT}={os.environ.get(_ROOT) or 'not set'}"
    fetch = f"fetch it from {benchmark.url}" if benchmark.url else "it is not published; use its DEV or TEST table"
    raise UserError(f"there is no table of {name} at {path} ({looked}); {fetch}")


def read_table(
    path: Path,
    benchmark: Benchmark | str,
    *,
    check_pictures: bool = True,
    need_pictures: bool = True,
    progress: bool = True,
) -> Table:
    """Read a table and check all of it.

    Args:
        path: the TSV file.
        benchmark: what it is to be read as; the file's name does not matter.
        check_pictures: decode every picture once, on all cores; False where another process does.
        need_pictures: False, for who asks a model nothing: pictures that are missing or cannot be used are only
            reported, and the table may have none at all.
        progress: show bars, where there is a terminal.

    Raises:
        UserError: columns are missing, indices are missing or twice there, rows or pictures cannot be read, or an
            answer cannot be; the message names the rows.
    """
    benchmark = find_benchmark(benchmark) if isinstance(benchmark, str) else benchmark
    path = Path(path)
    content = _read(path, benchmark, progress, need_pictures)
    findings = Findings()
    if not content.ends_well:
        findings.note(CUT, None)
    rows = _by_name(content, benchmark, findings)
    trouble = findings.fail if need_pictures else findings.note
    pictures = _pictures(path, content.columns.image, rows, trouble)
    if check_pictures and not findings.failed:
        owners = {row.question.index: row.question for row in rows.values() if row.key}
        for index, reason in pictures.check(list(owners), progress=progress).items():
            trouble(f"the picture cannot be used: {reason}", owners[index])
    bare = {row.question.index: row.question for row in rows.values() if not row.key and not row.reference}
    if len(bare) == len(rows) and not need_pictures:
        findings.note("the table has no pictures", None)
        bare = {}
    for question in bare.values():
        findings.note("no picture: left out, as VLMEvalKit does", question)
    kept = [row.question for row in rows.values() if row.question.index not in bare]
    findings.look_over(kept, benchmark)
    findings.raise_failed(path, benchmark)
    if not kept:
        raise UserError(f"{path} has no row with a picture: it is no table of {benchmark.name}; fetch it again")
    has_answers = any(question.answer for question in kept)
    indices = frozenset(question.index for question in kept)
    return Table(path, benchmark, kept, findings.lines(), content.fingerprint, has_answers, pictures, indices)


def _read(path: Path, benchmark: Benchmark, progress: bool, need_pictures: bool) -> _Content:
    digest, last = xxhash.xxh3_128(), b""

    def see(data: bytes) -> None:
        nonlocal last
        digest.update(data)
        last = data[-1:]
        bar.update(len(data))

    try:
        bar = tqdm(
            desc=f"reading {path.name}",
            total=path.stat().st_size,
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
        )
        with path.open("rb") as file, bar:
            records = read_records(file, str(path), see)
            header = next(records, None)
            if header is None:
                raise UserError(f"{path} is empty: it is no table of {benchmark.name}; fetch it again")
            columns = columns_of(header.cells, benchmark, path, need_pictures=need_pictures)
            rows = [_cells(record, columns, path) for record in records]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return _Content(columns, rows, digest.hexdigest(), last == b"\n")


def _cells(record: Record, columns: Columns, path: Path) -> _Cells:
    if len(record.cells) != len(columns.names):
        raise UserError(
            f"{path}, line {record.line}: the row has {len(record.cells)} cells, the header {len(columns.names)}: the "
            "file is cut short or was not written with a tab between cells; fetch it again"
        )
    cell, name = "", record.cells[columns.index].strip()
    if columns.image is not None:
        cell, record.cells[columns.image] = record.cells[columns.image].strip(), ""
    if len(cell) <= LONGEST_REFERENCE:
        return _Cells(record, name, cell, b"", False)
    return _Cells(record, name, "", xxhash.xxh3_128_digest(cell.encode()), is_list(cell) and "," in cell)


def _by_name(content: _Content, benchmark: Benchmark, findings: Findings) -> dict[str, _Row]:
    """The rows with their questions, by index; of rows with the same index the first."""
    whole = all(whole_number(row.name) is not None for row in content.rows)
    found: dict[str, _Row] = {}
    for cells in content.rows:
        name, reference = (_plain(text) if whole else text for text in (cells.name, cells.reference))
        question = question_of(cells.record, name, content.columns, benchmark, whole, findings)
        place = Place(cells.record.offset, cells.record.size)
        if name in found:
            findings.fail("the index was there before", question)
        found.setdefault(name, _Row(question, place, reference, cells.key))
        if cells.several:
            findings.note("several pictures, of which the first is shown", question)
    return found


def _plain(text: str) -> str:
    """A whole number as it is usually written, other text as it is."""
    number = whole_number(text)
    return text if number is None else str(number)


def _pictures(path: Path, column: int | None, rows: Mapping[str, _Row], trouble: Trouble) -> Pictures:
    """Where every row's picture stands, and its hash."""
    places, keys = {}, {}
    for name, row in rows.items():
        owner, seen = row, {name}
        while owner.reference in rows and owner.reference not in seen:
            seen.add(owner.reference)
            owner = rows[owner.reference]
        if owner.key:
            places[row.question.index], keys[row.question.index] = owner.place, owner.key
        elif row.reference:
            trouble(f"the picture is said to be that of row {owner.reference!r}, which has none", row.question)
    return Pictures(path, column, places, keys)
