"""Numbers printed in the papers: JSON files with table, rows, columns, source and what was checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class PublishedRow:
    """One line of a published table.

    Args:
        name: the method as the paper names it.
        family: `reference` for rows that a paper shows for orientation and does not rank, else free.
        values: one number per column, in the table's unit; None where the paper prints none.
        params_percent: trained parameters in percent of the model's, where the table has them.
        average: the average as printed, where the table has one.
    """

    name: str
    family: str
    values: tuple[float | None, ...]
    params_percent: float | None = None
    average: float | None = None


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper.

    Args:
        key: the data file's name.
        tag: how the project cites it, such as `[G] Table 1`.
        title: what is measured, on what, in which unit.
        source: the paper and its table.
        checked: how the numbers were checked, and what was not.
        columns: (key, printed name) of each column.
        rows: the lines as printed.
    """

    key: str
    tag: str
    title: str
    source: str
    checked: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[PublishedRow, ...]

    def row(self, name: str) -> PublishedRow:
        """The line named `name`."""
        return next(row for row in self.rows if row.name == name)

    def value(self, name: str, column: str) -> float | None:
        """The number of method `name` in the column with key `column`."""
        return self.row(name).values[[key for key, _ in self.columns].index(column)]


def load_published(key: str) -> PublishedTable:
    """Read `<key>.json` of this folder, which ships with the suite."""
    content = json.loads((files(__name__) / f"{key}.json").read_text(encoding="utf-8"))
    return PublishedTable(
        key=content["key"],
        tag=content["tag"],
        title=content["title"],
        source=content["source"],
        checked=tuple(content["checked"]),
        columns=tuple((column["key"], column["name"]) for column in content["columns"]),
        rows=tuple(PublishedRow(**{**row, "values": tuple(row["values"])}) for row in content["rows"]),
    )
