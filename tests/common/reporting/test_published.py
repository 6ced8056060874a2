"""The papers' numbers."""

import pytest

from common.reporting.compare import beside_published
from common.reporting.published import load_published


def test_every_row_of_goat_table_1_averages_to_its_printed_average() -> None:
    # 0.005: the printed average is rounded to two decimals; 1e-9 for the float sum.
    for row in load_published("goat_table1").rows:
        assert sum(row.values) / len(row.values) == pytest.approx(row.average, abs=0.005 + 1e-9), row.name


def test_goat_table_1_is_whole() -> None:
    table = load_published("goat_table1")
    assert [key for key, _ in table.columns] == ["cars", "dtd", "eurosat", "gtsrb", "resisc45", "sun397", "svhn"]
    assert len(table.rows) == 12
    assert all(len(row.values) == len(table.columns) for row in table.rows)
    assert "2502.16894" in table.source


def test_data_file_says_what_was_not_checked() -> None:
    assert any(text.startswith("Not done") for text in load_published("goat_table1").checked)


def test_parameter_shares_are_those_of_the_paper_convention() -> None:
    # trainable / 88 715 520 in percent with two decimals cut off, DESIGN 3.4; LoRA r=8 on q, k, v, out, fc1, fc2
    # of 12 layers of width 768.
    table = load_published("goat_table1")
    for rank, name in ((8, "LoRA"), (16, "LoRA (rank16)"), (32, "LoRA (rank32)")):
        trainable = 12 * rank * (4 * (768 + 768) + 2 * (768 + 3072))
        assert int(trainable / 88_715_520 * 10_000) / 100 == table.row(name).params_percent


def test_a_cell_is_found_by_method_and_column() -> None:
    assert load_published("goat_table1").value("GOAT", "eurosat") == 98.82


def test_full_fine_tuning_is_not_ranked() -> None:
    table = beside_published(load_published("goat_table1"), [], heading="")
    best = {table.rows[line].values[0] for line, _ in table.best()}
    assert best == {"GOAT", "DoRA"}
