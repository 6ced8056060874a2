"""The papers' numbers."""

import pytest

from common.reporting.compare import MeasuredRow, beside_published
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


# typed from the paper's HTML table, a second time and without looking at the data file
_SEEN_IN_THE_PAPER = {
    "Full FT": (60.33, 73.88, 98.96, 98.30, 93.65, 53.84, 96.78),
    "Full FT MoE": (66.39, 75.53, 98.59, 98.50, 94.38, 60.34, 97.09),
    "LoRA": (41.02, 70.15, 98.66, 96.51, 90.38, 47.51, 95.39),
    "LoRA (rank16)": (46.51, 72.07, 98.74, 98.04, 92.08, 51.63, 96.00),
    "LoRA (rank32)": (50.13, 72.87, 98.88, 98.13, 92.87, 53.65, 96.55),
}


@pytest.mark.parametrize("name", _SEEN_IN_THE_PAPER)
def test_cells_are_those_of_the_papers_html(name: str) -> None:
    table = load_published("goat_table1")
    assert table.row(name).values == _SEEN_IN_THE_PAPER[name]
    assert any("compared by eye" in text for text in table.checked)


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


def test_of_moslora_table_5_only_what_was_seen_is_there() -> None:
    table = load_published("moslora_table5")
    assert [name for _, name in table.columns] == [
        "MMBench EN", "MMBench CN", "SEED-Bench", "AI2D", "SciQA", "TextVQA", "MathVista", "MM-Vet", "MME"
    ]  # fmt: skip
    cells = {(row.name.split()[0], key): table.value(row.name, key) for row in table.rows for key, _ in table.columns}
    assert {place: value for place, value in cells.items() if value is not None} == {
        ("QMoSLoRA", "mmbench_en"): 73.8,
        ("QMoSLoRA", "mmvet"): 35.2,
    }
    assert [(row.name.split()[0], row.average) for row in table.rows] == [("MoSLoRA", 59.5), ("QMoSLoRA", None)]
    assert any("left out, none is guessed" in text for text in table.checked)


def test_moslora_table_5_stands_beside_a_measured_row_without_inventing_an_average() -> None:
    measured = MeasuredRow("ours", {"mmbench_en": {0: 70.0}})
    table = beside_published(load_published("moslora_table5"), [measured], heading="measured")
    assert [row.values[-1] for row in table.rows] == [59.5, None, None]
