import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UserError
from llava.data import reading
from llava.data.reading import read_records

SAID = 'é"\\\n\U0001f600'  # two bytes, escapes, and a character that JSON writes as a pair
ROWS = [{"id": i, "conversations": [{"from": "human", "value": SAID}]} for i in range(7)]


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes | str], Path]:
    def write(content: bytes | str) -> Path:
        path = tmp_path / "rows.json"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def values(path: Path) -> list:
    return [record.value for record in read_records(path)]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 1 << 22])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_are_the_same_wherever_the_text_is_cut(
    file, monkeypatch: pytest.MonkeyPatch, piece: int, ascii_only: bool, indent: int | None
) -> None:
    monkeypatch.setattr(reading, "CHUNK", piece)
    assert values(file(json.dumps(ROWS, ensure_ascii=ascii_only, indent=indent))) == ROWS
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in ROWS)
    assert values(file(lines)) == ROWS
    assert values(file(lines.replace("\n", "\r\n\n") + "\n")) == ROWS


@pytest.mark.parametrize("piece", [1, 5, 1 << 22])
def test_numbers_and_words_are_not_cut_in_two(file, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(reading, "CHUNK", piece)
    rows = [12345, -1.5e10, True, False, None, "", [], {}, float("inf"), float("-inf"), [[1], {"a": 2}]]
    assert values(file(json.dumps(rows))) == rows


def test_lines_are_named(file) -> None:
    assert [record.line for record in read_records(file('[\n{"a":\n1},\n\n{"b": 2}]'))] == [2, 5]
    assert [record.line for record in read_records(file('{"a": 1}\n\n{"b": 2}\n'))] == [1, 3]


def test_byte_order_mark_is_no_content(file) -> None:
    assert values(file(b"\xef\xbb\xbf" + b'[{"a": 1}]')) == [{"a": 1}]
    assert values(file(b"\xef\xbb\xbf" + b'{"a": 1}\n')) == [{"a": 1}]


@pytest.mark.parametrize(
    "end", ["", " ", ",", ',{"a', ',{"a": [1', ',{"a": "x', ',{"a": "x\\', ',{"a": tr', ',{"a":\n']
)
def test_file_that_is_cut_short_is_named_with_its_place(file, end: str) -> None:
    with pytest.raises(UserError, match=r"rows\.json, line [23], column \d+: the file ends .*cut short"):
        values(file('[\n{"a": 1}' + end))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is empty"),
        (" \n\t ", "is empty"),
        ("\ufeff", "is empty"),
        ("<html>404</html>", "line 1, column 1: begins with '<'; it must be a JSON list"),
        ('"text"', "must be a JSON list"),
        ("version https://git-lfs.github.com/spec/v1", "must be a JSON list"),
        ('[{"a": 1} {"b": 2}]', "line 1, column 11: ',' or ']' must follow, not '{'"),
        ('[{"a": 1},]', "line 1, column 11: a conversation behind the comma"),
        ('[{"a": 1}]\n[', "line 2, column 1: something follows the end"),
        ('[\n{"a": 1},\n{"b": nope}, ' + " " * 99, "line 3, column 7: row 1 is no JSON: Expecting value"),
        ('[\n{"b" 1}, ' + " " * 99, "line 2, column 6: row 0 is no JSON: Expecting ':'"),
        ('[{"a": "x\n' + "y" * 99 + '"}]', "column 10: row 0 is no JSON: Invalid control character"),
        ("[" * 100_000, "nested too deeply"),
        ('{\n "a": 1\n}', "line 1 is no whole JSON object"),
        (b'[{"a": "\xff"}]', "is not UTF-8 text: invalid start byte at byte 8"),
        (b'{"a": "\xc3\x28"}', "is not UTF-8 text: .* at byte 7"),
        (b"\xff\xfe[\x00]\x00", "UTF-16"),
        (b"\x1f\x8b\x08rest", "gzip"),
        (b"PK\x03\x04rest", "zip"),
        (b"PAR1rest", "parquet"),
    ],
)
def test_what_is_no_file_of_rows_is_a_user_error(file, content: bytes | str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        values(file(content))


def test_position_of_bytes_is_right_beyond_the_first_piece(file, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 10)
    with pytest.raises(UserError, match="at byte 31"):
        values(file(b'["' + b"x" * 25 + b'", "\xff"]'))


def test_line_that_is_no_json_is_a_counted_problem(file) -> None:
    records = list(read_records(file('{"a": 1}\n{"a": \n[[[\n{"b": 2} x\n"text"\n{"c": 3}')))
    assert [(record.line, record.value) for record in records if not record.problem] == [
        (1, {"a": 1}),
        (5, "text"),
        (6, {"c": 3}),
    ]
    assert [record.line for record in records if record.problem] == [2, 3, 4]
    assert "column 10" in str(records[3].problem)


def test_numbers_of_thousands_of_digits_are_read(file) -> None:
    assert values(file('[{"id": ' + "7" * 10_000 + "}]")) == [{"id": float("inf")}]


def test_quotation_mark_that_is_missing_does_not_fill_the_memory(file, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 100)
    monkeypatch.setattr(reading, "LONGEST_ROW", 1000)
    with pytest.raises(UserError, match="line 2, column 1: row 1 has no end within 1,000 characters"):
        values(file('[{"a": 1},\n{"a": "' + "x" * 10_000))
    with pytest.raises(UserError, match="line 2, column 1: the line has no end within 1,000"):
        values(file('{"a": 1}\n{"a": "' + "x" * 10_000))


@pytest.mark.parametrize("kind", ["folder", "missing", "device"])
def test_what_is_no_file_is_a_user_error(tmp_path: Path, kind: str) -> None:
    path = {"folder": tmp_path, "missing": tmp_path / "none.json", "device": Path("/dev/null")}[kind]
    with pytest.raises(UserError, match=f"data.path={path}"):
        values(path)


def test_memory_does_not_grow_with_the_file(file, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 1 << 14)
    row = json.dumps({"id": 0, "conversations": ["x" * 500]})

    def peak(rows: int) -> int:
        path = file("[" + ",\n".join([row] * rows) + "]")
        tracemalloc.start()
        for _ in read_records(path):
            pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(4000) < 1.5 * peak(400)


def test_damaged_files_give_rows_or_a_user_error(file) -> None:
    """Random damage of every kind: nothing but `UserError` may come out."""
    rng = random.Random(0)
    whole = [json.dumps(ROWS).encode(), "\n".join(map(json.dumps, ROWS)).encode()]
    for _ in range(500):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(data) + 1)
            match rng.randrange(4):
                case 0:
                    data[place : place + rng.randrange(9)] = b""
                case 1:
                    data[place:place] = bytes(rng.randrange(256) for _ in range(3))
                case 2:
                    data[place:place] = rng.choice([b'"', b"{", b"]", b",", b"\\u12", b"\n", b"\x00", b"\\ud800"])
                case 3:
                    data[place:] = b""
        try:
            for record in read_records(file(bytes(data))):
                assert record.problem is None or record.value is None
        except UserError as error:
            assert "rows.json" in str(error)  # noqa: PT017
