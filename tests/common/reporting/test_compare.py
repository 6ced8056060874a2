"""Rows of ours beside a published table."""

import pytest

from common.reporting.compare import MeasuredRow, beside_published
from common.reporting.published import load_published
from common.reporting.tables import Spread, Table, render_text

SETS = ("cars", "dtd", "eurosat", "gtsrb", "resisc45", "sun397", "svhn")


def beside(*rows: MeasuredRow) -> Table:
    return beside_published(load_published("goat_table1"), rows, heading="measured here")


def cell(table: Table, method: str, column: str, group: str = "measured here") -> object:
    names = [column.name for column in table.columns]
    row = next(row for row in table.rows if row.values[0] == method and row.group == group)
    return row.values[names.index(column)]


def test_our_numbers_stand_in_the_columns_of_the_paper() -> None:
    table = beside(MeasuredRow("GOAT", {"dtd": {0: 70.0}, "gtsrb": {0: 90.0}}, 2.24))
    assert cell(table, "GOAT", "DTD") == Spread(70.0, None, 1)
    assert cell(table, "GOAT", "Cars") is None
    assert cell(table, "GOAT", "DTD", "published, [G] Table 1") == 75.32


def test_there_is_no_average_over_fewer_sets_than_the_paper_has() -> None:
    table = beside(MeasuredRow("GOAT", {name: {0: 50.0} for name in SETS[:-1]}))
    assert cell(table, "GOAT", "average of 7") is None


def test_average_and_its_deviation_are_over_whole_seeds() -> None:
    values = {name: {0: 50.0 + i, 1: 52.0 + i} for i, name in enumerate(SETS)}
    average = cell(beside(MeasuredRow("GOAT", values)), "GOAT", "average of 7")
    assert average == Spread.of([53.0, 55.0])


def test_seeds_that_no_set_shares_still_give_an_average_without_deviation() -> None:
    values = {name: {i: 50.0} for i, name in enumerate(SETS)}
    assert cell(beside(MeasuredRow("GOAT", values)), "GOAT", "average of 7") == Spread(50.0, None, 1)


def test_a_set_of_ones_own_comes_behind_and_is_not_averaged() -> None:
    values = {**{name: {0: 50.0} for name in SETS}, "flowers": {0: 99.0}}
    table = beside(MeasuredRow("GOAT", values))
    assert [column.name for column in table.columns][-2:] == ["average of 7", "flowers"]
    assert cell(table, "GOAT", "average of 7") == Spread(50.0, None, 1)
    assert cell(table, "GOAT", "flowers", "published, [G] Table 1") is None


def test_without_a_shared_set_the_paper_is_left_out() -> None:
    table = beside(MeasuredRow("GOAT", {"flowers": {0: 99.0}}))
    assert {row.group for row in table.rows} == {"measured here"}
    assert "Table 1" not in render_text(table)


def test_our_rows_do_not_take_the_mark_from_the_paper() -> None:
    table = beside(MeasuredRow("LoRA", {"dtd": {0: 99.0}}), MeasuredRow("GOAT", {"dtd": {0: 98.0}}))
    column = [column.name for column in table.columns].index("DTD")
    marked = {
        table.rows[line].group + ": " + str(table.rows[line].values[0]) for line, at in table.best() if at == column
    }
    assert marked == {"published, [G] Table 1: GOAT", "measured here: LoRA"}


@pytest.mark.parametrize("seeds", [{}, {0: 1.0}])
def test_a_row_with_nothing_measured_yet_is_printed(seeds: dict[int, float]) -> None:
    assert "GOAT" in render_text(beside(MeasuredRow("GOAT", {"dtd": seeds} if seeds else {})))
