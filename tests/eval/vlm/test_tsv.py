"""Records of a TSV file, against pandas."""

import io
import random
from pathlib import Path

import pandas as pd
import pytest

from common.errors import UserError
from eval.vlm.tsv import cells_of, read_cell, read_records


def cells(data: bytes) -> list[list[str]]:
    return [record.cells for record in read_records(io.BytesIO(data), "x.tsv")]


def test_what_pandas_writes_is_read_as_it_was(tmp_path: Path) -> None:
    dice, alphabet = (
        random.Random(5),
        ["a", "\t", "\n", '"', " ", "\r\n", "é", "数", "NA", "None", "\u2028", "'", "x,y"],
    )
    frame = pd.DataFrame(
        [["".join(dice.choices(alphabet, k=dice.randrange(6))) for _ in range(4)] for _ in range(200)],
        columns=list("ABCD"),
    )
    path = tmp_path / "t.tsv"
    frame.to_csv(path, sep="\t", index=False)
    with path.open("rb") as file:
        header, *rows = [record.cells for record in read_records(file, "t.tsv")]
    assert header == list("ABCD")
    # an all-empty row is written as three tabs, so it is a row here too
    assert rows == frame.values.tolist()


def test_a_record_is_found_again_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes('﻿index\tq\n1\t"two\nlines ""here"""\n\n2\t数学\r\n3\tplain'.encode())
    with path.open("rb") as file:
        records = list(read_records(file, "t.tsv"))
    assert [record.cells for record in records] == [
        ["index", "q"], ["1", 'two\nlines "here"'], ["2", "数学"], ["3", "plain"]
    ]  # fmt: skip
    assert [record.line for record in records] == [1, 2, 5, 6]
    content = path.read_bytes()
    for record in records:
        assert cells_of(content[record.offset : record.offset + record.size]) == record.cells
        assert read_cell(path, record.offset, record.size, 1) == record.cells[1]


def test_every_byte_is_seen_once() -> None:
    data, seen = b'a\tb\n"x\ny"\t2\n\n3\t4', b""

    def see(part: bytes) -> None:
        nonlocal seen
        seen += part

    assert len(list(read_records(io.BytesIO(data), "x.tsv", see))) == 3
    assert seen == data


def test_a_quote_within_a_cell_is_a_character() -> None:
    assert cells(b'a\tb\n5" pipe\t2\n') == [["a", "b"], ['5" pipe', "2"]]


def test_cells_longer_than_the_csv_modules_limit_are_read() -> None:
    long = "A" * 300_000
    assert cells(f'i\timage\n"1"\t{long}\n'.encode())[1] == ["1", long]


def test_a_quoted_cell_without_end_says_that_the_file_is_cut() -> None:
    with pytest.raises(UserError, match=r"x.tsv, line 2: a quoted cell has no end.*cut short"):
        cells(b'a\tb\n1\t"never closed\n2\tx\n')


def test_text_that_is_not_utf_8_is_refused_with_its_line() -> None:
    with pytest.raises(UserError, match="line 2 is not UTF-8"):
        cells(b"a\tb\n\xff\xfe\t1\n")
