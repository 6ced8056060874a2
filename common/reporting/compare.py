"""A published table with rows of ours beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from common.reporting.published import PublishedTable
from common.reporting.tables import Column, Row, Spread, Table, Value


@dataclass(frozen=True)
class MeasuredRow:
    """What was measured with one method.

    Args:
        name: the method, as it is to be printed.
        values: column key -> seed -> value, in the unit of the published table.
        params_percent: trained parameters in percent; None where it is not the same in all columns.
        ranked: False for a line that is shown for orientation, such as the model before training.
    """

    name: str
    values: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    params_percent: float | None = None
    ranked: bool = True

    def value(self, column: str) -> Spread | None:
        """Mean and deviation over the seeds of a column, None where nothing was measured."""
        seeds = self.values.get(column)
        return Spread.of(seeds.values()) if seeds else None

    def average(self, columns: Sequence[str]) -> Spread | None:
        """Average over all of `columns`, with its deviation over the seeds that were run on every one of them.

        None unless each column has a value: an average over fewer sets is another quantity.
        """
        if not columns or not all(self.values.get(column) for column in columns):
            return None
        shared = set.intersection(*(set(self.values[column]) for column in columns))
        if shared:
            averages = [sum(self.values[column][seed] for column in columns) / len(columns) for seed in sorted(shared)]
            return Spread.of(averages)
        means = [Spread.of(self.values[column].values()).mean for column in columns]
        return Spread(sum(means) / len(means), None, 1)


def beside_published(
    published: PublishedTable, measured: Sequence[MeasuredRow], *, heading: str, caption: str = ""
) -> Table:
    """The published table with a second group of rows, ours; each group has its own best.

    A column of ours that the paper lacks comes behind the average, which is over the paper's columns only.
    Where no column is shared, the paper's rows are left out.

    Args:
        published: the paper's table.
        measured: our rows.
        heading: in which setting ours were measured; heads their group.
        caption: added in front of the source.
    """
    keys = [key for key, _ in published.columns]
    ours = list(dict.fromkeys(column for row in measured for column in row.values))
    extra = [column for column in ours if column not in keys]
    if ours and len(extra) == len(ours):
        columns = [Column("method"), Column("params %", better=None), *map(Column, extra), Column("average")]
        rows = [_row(row, extra, extra, ()) for row in measured]
        return Table(columns, [Row(row.values, heading, row.ranked) for row in rows], caption)
    columns = [
        Column("method"),
        Column("params %", better=None),
        *(Column(name) for _, name in published.columns),
        Column(f"average of {len(keys)}"),
        *map(Column, extra),
    ]
    theirs = [
        Row(
            (row.name, row.params_percent, *row.values, row.average, *[None] * len(extra)),
            f"published, {published.tag}",
            row.family != "reference",
        )
        for row in published.rows
    ]
    mine = [_row(row, keys, keys, extra) for row in measured]
    rows = [*theirs, *(Row(row.values, heading, row.ranked) for row in mine)]
    if all(row.values[1] is None for row in rows):  # not every table counts parameters
        del columns[1]
        rows = [replace(row, values=(row.values[0], *row.values[2:])) for row in rows]
    source = f"{published.tag}: {published.title}. {published.source}."
    return Table(columns, rows, " ".join(filter(None, [caption, source])))


def _row(row: MeasuredRow, columns: Sequence[str], averaged: Sequence[str], extra: Sequence[str]) -> Row:
    values: list[Value] = [row.name, row.params_percent, *(row.value(column) for column in columns)]
    values += [row.average(averaged), *(row.value(column) for column in extra)]
    return Row(tuple(values), ranked=row.ranked)
