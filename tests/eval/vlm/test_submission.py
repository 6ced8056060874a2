"""The spreadsheet of a test set, read back by two readers."""

from pathlib import Path

import openpyxl
import pandas
import pytest

from common.errors import UserError
from eval.vlm.benchmarks import find_benchmark
from eval.vlm.submission import write_submission
from eval.vlm.table import Table, read_table
from tests.eval.vlm.tables import mmbench_rows, write_tsv

AWKWARD = ["None", "NA", "=1+1", "nan", "TRUE", "007", "1e5", "+A", "-", "@SUM(A1)", "", "答案是A", 'a\nb\t"c"', " A "]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    rows = mmbench_rows(4, splits=["test"])
    rows[0] |= {"A": "None", "B": "=1+1", "C": "NA"}
    for row in rows:
        del row["answer"]
    return read_table(write_tsv(tmp_path / "table.tsv", rows), find_benchmark("MMBench_TEST_EN"))


def submit(table: Table, path: Path, predictions: dict[str, str]) -> int:
    return write_submission(
        path, list(table.questions[0].fields), [question.fields for question in table.questions], predictions
    )


def test_every_rotation_is_there_with_vlmevalkits_columns(table: Table, tmp_path: Path) -> None:
    predictions = {str(question.index): "A" for question in table.questions}
    assert submit(table, tmp_path / "s.xlsx", predictions) == 0
    found = pandas.read_excel(tmp_path / "s.xlsx", keep_default_na=False)
    columns = list(pandas.read_csv(table.path, sep="\t").columns)
    assert list(found.columns) == [*(name for name in columns if name != "image"), "prediction"]
    assert list(found["index"]) == [question.index for question in table.questions]
    assert max(found["index"]) >= 3_000_000
    assert set(found["prediction"]) == {"A"}


def test_cells_are_text_whatever_they_look_like(table: Table, tmp_path: Path) -> None:
    predictions = {str(question.index): text for question, text in zip(table.questions, AWKWARD, strict=False)}
    predictions |= {str(question.index): "A" for question in table.questions[len(AWKWARD) :]}
    assert len(table.questions) >= len(AWKWARD) - 1
    submit(table, tmp_path / "s.xlsx", predictions)
    sheet = openpyxl.load_workbook(tmp_path / "s.xlsx").active
    assert sheet is not None
    header, *rows = sheet.iter_rows()
    names = [cell.value for cell in header]
    for question, row in zip(table.questions, rows, strict=True):
        cell = row[names.index("prediction")]
        expected = predictions[str(question.index)]
        assert (cell.value or "") == expected
        assert cell.data_type == ("s" if expected else "n")  # an empty cell has no type
    first = dict(zip(names, rows[0], strict=True))
    assert [(first[name].value, first[name].data_type) for name in "ABC"] == [("None", "s"), ("=1+1", "s"), ("NA", "s")]
    whole = pandas.read_excel(tmp_path / "s.xlsx", keep_default_na=False, dtype=str)
    assert list(whole["prediction"]) == [predictions[str(question.index)] for question in table.questions]


def test_what_a_spreadsheet_cannot_hold_is_counted(table: Table, tmp_path: Path) -> None:
    predictions = {str(question.index): "A" for question in table.questions}
    predictions["0"], predictions["1"] = "B\x07\x00", "C" * 40_000
    assert submit(table, tmp_path / "s.xlsx", predictions) == 2
    found = pandas.read_excel(tmp_path / "s.xlsx", keep_default_na=False, dtype=str)
    assert found["prediction"][0] == "B\ufffd\ufffd"
    assert found["prediction"][1] == "C" * 32_767


def test_a_place_that_cannot_be_written_is_named(table: Table, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be written"):
        submit(table, tmp_path / "absent" / "s.xlsx", {str(question.index): "A" for question in table.questions})
