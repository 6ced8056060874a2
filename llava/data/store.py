"""The sound conversations of a file, in an Arrow file that every process maps into its memory.

A Python list of the 665K mix takes gigabytes, and again in every worker; a mapped file takes none, and an object that
refers to it is pickled as a path.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from common.cache import fingerprint_of, hash_file
from common.errors import UserError
from common.files import TEMPORARY, atomic_write, fsync_path
from common.write_errors import is_denied, is_full
from llava.data import rules
from llava.data.reading import read_records
from llava.data.rules import Defect, Row

# Rows of an Arrow batch; row i lies in batch i // BATCH.
BATCH = 1000
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("image_turn", pa.int16()),
        ("texts", pa.list_(pa.string())),
        ("words", pa.int32()),
    ]
)
_PICTURES = pa.schema([("picture", pa.string())])


@dataclass
class TextReport:
    """What was found in a file's text.

    Args:
        key: names the file's content and the rules.
        read: rows of the file.
        rules: how often each of `rules.RULES` was applied.
        defects: [id or line, reason] of every row that is left out.
    """

    key: str
    read: int = 0
    rules: dict[str, int] = field(default_factory=dict)
    defects: list[tuple[str, str]] = field(default_factory=list)


class ArrowRows:
    """Rows of an Arrow file by number. Opened on first use, in each process by itself; pickled as its path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._batches: list[pa.RecordBatch] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": None}

    def __len__(self) -> int:
        batches = self._opened()
        return (len(batches) - 1) * BATCH + len(batches[-1]) if batches else 0

    def value(self, row: int, column: str) -> Any:
        """One cell as a Python object."""
        return self._opened()[row // BATCH].column(column)[row % BATCH].as_py()

    def batches(self, column: str) -> Iterator[list[Any]]:
        """A column, `BATCH` cells at a time."""
        for batch in self._opened():
            yield batch.column(column).to_pylist()

    def _opened(self) -> list[pa.RecordBatch]:
        if self._batches is None:
            reader = pa.ipc.open_file(pa.memory_map(str(self._path)))
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        return self._batches


class Rows(ArrowRows):
    """The sound conversations of a file."""

    def __getitem__(self, row: int) -> Row:
        batch, i = self._opened()[row // BATCH], row % BATCH
        values = [batch.column(name)[i].as_py() for name in ("id", "image", "image_turn", "texts")]
        return Row(*values)


def folder_of(path: Path, root: Path, key: str) -> Path:
    """Where the indices of a file are kept, by its content: a copy of the file shares them."""
    if not path.is_file():
        next(read_records(path, key))  # says what is wrong with it
    try:
        content = hash_file(path)
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {error.strerror}") from error
    return root / "llava" / fingerprint_of(rules.VERSION, BATCH, content)[:32]


def open_rows(path: Path, folder: Path, key: str) -> tuple[Rows, TextReport]:
    """The sound conversations of a file, read into `folder` where they are not yet; the folder must be locked.

    Args:
        path: the file.
        folder: from `folder_of`.
        key: the option that names the file, for messages.

    Raises:
        UserError: the file cannot be read, or not one of its rows is a sound conversation.
    """
    report_file, arrow = folder / "text.json", folder / "rows.arrow"
    try:
        report = TextReport(**json.loads(report_file.read_text()))
        report.defects = [(name, reason) for name, reason in report.defects]
        if report.key == folder.name and arrow.is_file():
            return Rows(arrow), report
    except (OSError, ValueError, TypeError):
        pass
    for left in folder.glob(f".*{TEMPORARY}"):  # by a process that was killed
        left.unlink()
    report = TextReport(folder.name)
    with tqdm(desc=f"reading {path.name}", total=path.stat().st_size, unit="B", unit_scale=True, disable=None) as bar:
        write_arrow(arrow, _SCHEMA, _sound(read_records(path, key, bar.update), report))
    if len(report.defects) == report.read:
        name, reason = report.defects[0] if report.defects else ("", "the list is empty")
        raise UserError(
            f"{key}={path} holds no conversation that can be used ({report.read} rows); the first, {name}: {reason}"
            if report.defects
            else f"{key}={path} holds no conversation: {reason}"
        )
    atomic_write(report_file, json.dumps(asdict(report)))
    return Rows(arrow), report


def _sound(records: Iterable[Any], report: TextReport) -> Iterator[dict[str, Any]]:
    applied: Counter[str] = Counter()
    for record in records:
        report.read += 1
        if record.problem:
            report.defects.append((f"line {record.line}", record.problem))
            continue
        try:
            row, used = rules.normalise(record.value, record.line)
        except Defect as defect:
            report.defects.append((defect.row_id, defect.reason))
            continue
        applied.update(used)
        yield {**row._asdict(), "words": sum(len(text.split()) for text in row.texts)}
    report.rules = {name: applied[name] for name in rules.RULES if applied[name]}


def write_arrow(path: Path, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows to an Arrow file in batches of `BATCH`; the file is whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            batch: list[dict[str, Any]] = []
            for row in rows:
                batch.append(row)
                if len(batch) == BATCH:
                    writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                    batch = []
            if batch:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
        fsync_path(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_pictures(path: Path, names: Iterable[str | None]) -> None:
    """Write the pictures' names on the disk, one for each row (None: text alone, or left out)."""
    write_arrow(path, _PICTURES, ({"picture": name} for name in names))


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make a folder of the cache, and explain why nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if is_full(error):
            raise UserError(
                f"no space left for the index in {folder} ({error.strerror}); free some, or set data.cache_dir"
            ) from error
        if is_denied(error):
            raise UserError(
                f"the index cannot be written to {folder} ({error.strerror}); set data.cache_dir to a folder of yours"
            ) from error
        raise
