"""Tables as text and markdown."""

import pytest

from common.reporting.tables import Column, Row, Spread, Table, display_width, render_markdown, render_text


def table_of(*rows: Row, **columns: Column) -> Table:
    return Table([Column("method"), *columns.values()], rows)


ACCURACY = {"a": Column("accuracy"), "t": Column("time", 1, better="lower", unit=" s")}


def test_columns_are_aligned() -> None:
    text = render_text(table_of(Row(("LoRA", 7.5, 12.0)), Row(("MoSLoRA", 70.25, 5.0)), **ACCURACY))
    lines = text.splitlines()
    # The decimal points of a column stand below each other.
    assert lines[2].index("7.50") + 1 == lines[3].index("70.25") + 2
    assert lines[2].index("12.0") + 2 == lines[3].index(" 5.0") + 2


def test_a_missing_cell_is_a_dash() -> None:
    table = table_of(Row(("LoRA", None, 1.0)), Row(("GOAT", 2.0, 3.0)), **ACCURACY)
    assert "–" in render_text(table)
    assert "| LoRA | – |" in render_markdown(table)


def test_the_best_of_each_column_is_marked_by_its_direction() -> None:
    table = table_of(Row(("LoRA", 70.0, 9.0)), Row(("GOAT", 75.0, 12.0)), **ACCURACY)
    assert table.best() == {(1, 1), (0, 2)}
    assert "75.00*" in render_text(table)
    assert "**9.0 s**" in render_markdown(table)


def test_numbers_that_print_the_same_are_both_the_best() -> None:
    table = table_of(Row(("LoRA", 75.001, None)), Row(("GOAT", 75.004, None)), **ACCURACY)
    assert table.best() == {(0, 1), (1, 1)}


def test_groups_are_ranked_each_for_itself() -> None:
    rows = [Row((name, value, None), group) for name, value, group in
            (("a", 90.0, "paper"), ("b", 80.0, "paper"), ("c", 10.0, "ours"), ("d", 20.0, "ours"))]  # fmt: skip
    assert table_of(*rows, **ACCURACY).best() == {(0, 1), (3, 1)}


def test_an_unranked_row_is_never_the_best() -> None:
    rows = (Row(("full", 99.0, None), ranked=False), Row(("a", 1.0, None)), Row(("b", 2.0, None)))
    assert table_of(*rows, **ACCURACY).best() == {(2, 1)}


def test_a_single_number_is_not_called_the_best() -> None:
    assert table_of(Row(("only", 1.0, None)), **ACCURACY).best() == set()


def test_spread_is_mean_and_sample_deviation() -> None:
    spread = Spread.of([60.0, 62.0, 64.0])
    assert (spread.mean, spread.deviation, spread.n) == (62.0, 2.0, 3)
    assert Spread.of([5.0]).deviation is None
    assert "62.00 ± 2.00" in render_text(table_of(Row(("LoRA", spread, None)), **ACCURACY))


def test_markdown_of_foreign_text_stays_in_its_cell() -> None:
    row = Row(("a|b *c* <script>\n[x](y)", 1.0, None))
    line = render_markdown(table_of(row, **ACCURACY)).splitlines()[-1]
    assert line == r"| a\|b \*c\* \<script> \[x\](y) | 1.00 | – |"


def test_every_markdown_line_has_the_same_number_of_cells() -> None:
    rows = (Row(("a", 1.0, 2.0), "first | group"), Row(("b", 1.0, 2.0), "second"))
    counts = {line.replace(r"\|", "").count("|") for line in render_markdown(table_of(*rows, **ACCURACY)).splitlines()}
    assert counts == {4}


@pytest.mark.parametrize(("text", "width"), [("abc", 3), ("漢字", 4), ("e\u0301", 1)])
def test_display_width_counts_terminal_columns(text: str, width: int) -> None:
    assert display_width(text) == width


def test_thousands_are_set_apart() -> None:
    assert "1 234 567" in render_text(table_of(Row(("full", 1234567, None)), **ACCURACY))


def test_a_row_of_the_wrong_length_is_our_bug() -> None:
    with pytest.raises(AssertionError):
        table_of(Row(("a", 1.0)), **ACCURACY)


def test_a_long_caption_is_wrapped_for_the_terminal() -> None:
    table = Table([Column("a")], [Row(("b",))], "word " * 60)
    assert max(map(len, render_text(table).splitlines())) <= 100
