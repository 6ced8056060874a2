"""The file that MMBench's submission service takes: VLMEvalKit's table of predictions, all rotations, as xlsx."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openpyxl import Workbook
from openpyxl.cell import WriteOnlyCell
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from openpyxl.worksheet._write_only import WriteOnlyWorksheet

from common.files import atomic_write
from common.write_errors import writing_is_explained

PREDICTION = "prediction"
_LEFT_OUT = ("image", PREDICTION)
_MOST = 32_767  # letters of a cell


def write_submission(
    path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]], predictions: Mapping[str, str]
) -> int:
    """Write a table with its predictions as a spreadsheet.

    Every cell but a number in `index` is text, whatever it looks like: `=1+1` is no formula, `None` and `NA` are words.
    (They still turn into missing values where they are read by `pandas.read_excel` without `keep_default_na=False`.)

    Args:
        path: the xlsx file.
        columns: of the table, in its order; `image` is left out, as VLMEvalKit does.
        rows: the table as text.
        predictions: index as text -> what the model answered, for every row.

    Returns:
        How many cells were changed, because a spreadsheet cannot hold a control character or so long a text.
    """
    kept = [column for column in columns if column not in _LEFT_OUT]
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    assert isinstance(sheet, WriteOnlyWorksheet)
    changed = 0
    sheet.append([_cell(sheet, column)[0] for column in [*kept, PREDICTION]])
    for row in rows:
        index = str(row["index"])
        cells = [_number(row[column]) if column == "index" else _cell(sheet, row.get(column, "")) for column in kept]
        cells.append(_cell(sheet, predictions[index]))
        sheet.append([value for value, _ in cells])
        changed += sum(bad for _, bad in cells)
    content = io.BytesIO()
    book.save(content)
    with writing_is_explained(path.parent):
        atomic_write(path, content.getvalue())
    return changed


def _number(text: str) -> tuple[Any, bool]:
    return (int(text), False) if str(text).isdigit() else (text, False)


def _cell(sheet: WriteOnlyWorksheet, text: str) -> tuple[Any, bool]:
    """A cell that is text, and whether the text had to be changed; an empty one is no cell."""
    fit = ILLEGAL_CHARACTERS_RE.sub("\N{REPLACEMENT CHARACTER}", text)[:_MOST]
    if not fit:
        return None, False
    cell = WriteOnlyCell(sheet, fit)
    cell.data_type = "s"  # openpyxl takes what begins with = for a formula
    return cell, fit != text
