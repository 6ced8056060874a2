"""Tables as plain text for a terminal, as markdown and as CSV; `page.py` sets the same tables as HTML.

A table is rows of values. How a value is printed belongs to its column; the best of a column is marked
within its group of rows, because numbers of a paper and numbers of ours are not ranked against each other.
"""

from __future__ import annotations

import csv
import io
import statistics
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

MISSING = "–"
_CAPTION_WIDTH = 100


@dataclass(frozen=True)
class Spread:
    """A mean over repeated runs.

    Args:
        mean: the mean.
        deviation: sample standard deviation (n - 1); None for a single run.
        n: number of runs.
    """

    mean: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Mean and sample standard deviation of at least one value."""
        numbers = list(values)
        return cls(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, len(numbers))

    def times(self, factor: float) -> Spread:
        """The same in another unit."""
        return Spread(self.mean * factor, None if self.deviation is None else self.deviation * factor, self.n)


Value = str | int | float | Spread | None


@dataclass(frozen=True)
class Column:
    """How a column is headed, printed and ranked.

    Args:
        name: the heading.
        digits: decimals of a number that is not an int.
        better: whether the highest or the lowest number is the best; None marks nothing.
        unit: text set directly behind each number, such as ` s` or `%`.
    """

    name: str
    digits: int = 2
    better: Literal["higher", "lower"] | None = "higher"
    unit: str = ""


@dataclass(frozen=True)
class Row:
    """One line.

    Args:
        values: one value per column; None prints as a dash.
        group: rows of one group stand together under this heading and are ranked among themselves.
        ranked: False for a line that is shown for orientation and may not be marked the best.
    """

    values: tuple[Value, ...]
    group: str = ""
    ranked: bool = True


@dataclass(frozen=True)
class Table:
    """Columns, rows, and a caption that says what is measured, on what, and where it comes from."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row.values) == len(self.columns), f"{len(row.values)} values, {len(self.columns)} columns"

    def groups(self) -> list[tuple[str, list[int]]]:
        """The groups in the order of their first row, each with the numbers of its rows."""
        found: dict[str, list[int]] = {}
        for line, row in enumerate(self.rows):
            found.setdefault(row.group, []).append(line)
        return list(found.items())

    def cells(self) -> list[list[str]]:
        """Every value as its column prints it, row by row."""
        return [
            [format_value(value, column) for value, column in zip(row.values, self.columns, strict=True)]
            for row in self.rows
        ]

    def is_numeric(self, index: int) -> bool:
        """Whether a column holds numbers, which are set flush right."""
        values = [row.values[index] for row in self.rows if row.values[index] is not None]
        return bool(values) and not any(isinstance(value, str) for value in values)

    def best(self) -> set[tuple[int, int]]:
        """(row, column) of every best number; a group with fewer than two ranked numbers has none."""
        found = set()
        for index, column in enumerate(self.columns):
            if column.better is None:
                continue
            for _, lines in self.groups():
                found |= {(line, index) for line in self._best_lines(index, column, lines)}
        return found

    def _best_lines(self, index: int, column: Column, lines: Sequence[int]) -> list[int]:
        # Compared as printed: a difference that the reader cannot see must not decide.
        numbers = {
            line: round(number, column.digits)
            for line in lines
            if self.rows[line].ranked and (number := number_of(self.rows[line].values[index])) is not None
        }
        if len(numbers) < 2:
            return []
        best = (max if column.better == "higher" else min)(numbers.values())
        return [line for line, number in numbers.items() if number == best]


def number_of(value: Value) -> float | None:
    """The number to rank by, or None for text and missing values."""
    if isinstance(value, Spread):
        return value.mean
    return None if value is None or isinstance(value, str) else float(value)


def format_value(value: Value, column: Column) -> str:
    """A value as its column prints it; thousands of an int are set apart by a thin space."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value
    if isinstance(value, Spread):
        spread = "" if value.deviation is None else f" ± {value.deviation:.{column.digits}f}"
        return f"{value.mean:.{column.digits}f}{spread}{column.unit}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ") + column.unit
    return f"{value:.{column.digits}f}{column.unit}"


def render_text(table: Table) -> str:
    """The table for a terminal: aligned columns, `*` behind the best, a heading line for each group."""
    best, cells = table.best(), table.cells()
    # Where a column marks anything, every cell leaves room for the mark, so that digits stay in line.
    marked = {column for _, column in best}
    for line, row in enumerate(cells):
        for column in marked:
            row[column] += "*" if (line, column) in best else " "
    heads = [column.name + (" " if index in marked else "") for index, column in enumerate(table.columns)]
    widths = [max(display_width(row[index]) for row in [heads, *cells]) for index in range(len(heads))]
    rule = "  ".join("─" * width for width in widths)
    lines = textwrap.wrap(table.caption, _CAPTION_WIDTH)
    lines.append(_text_line(table, heads, widths))
    for group, numbers in table.groups():
        lines.append(rule)
        lines += [group] if group else []
        lines += [_text_line(table, cells[number], widths) for number in numbers]
    if best:
        lines.append("* best of its column" + (" and group" if len(table.groups()) > 1 else ""))
    return "\n".join(lines)


def _text_line(table: Table, cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        gap = " " * (width - display_width(cell))
        padded.append(gap + cell if table.is_numeric(index) else cell + gap)
    return "  ".join(padded).rstrip()


def render_csv(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Plain values as CSV with a line of headings."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()


def render_markdown(table: Table) -> str:
    """The table in GitHub's markdown: bold for the best, a bold line for the heading of each group."""
    best = table.best()
    heads = [_escape_markdown(column.name) for column in table.columns]
    rules = ["---:" if table.is_numeric(index) else "---" for index in range(len(heads))]
    lines = [_markdown_line(heads), _markdown_line(rules)]
    cells = table.cells()
    for group, numbers in table.groups():
        if group:
            lines.append(_markdown_line([f"**{_escape_markdown(group)}**", *[""] * (len(heads) - 1)]))
        for number in numbers:
            texts = [_escape_markdown(cell) for cell in cells[number]]
            lines.append(_markdown_line([f"**{t}**" if (number, i) in best else t for i, t in enumerate(texts)]))
    caption = [_escape_markdown(table.caption), ""] if table.caption else []
    return "\n".join([*caption, *lines])


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape_markdown(text: str) -> str:
    """Text that can neither break out of its cell nor be read as markup or HTML."""
    for sign in ("\\", "|", "*", "_", "`", "[", "]", "<"):
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def display_width(text: str) -> int:
    """Columns that a terminal needs for a text; wide East Asian letters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )
