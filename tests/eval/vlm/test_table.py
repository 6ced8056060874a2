"""Reading tables, and every kind of bad one."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from eval.vlm.table import find_table, read_table
from tests.eval.vlm import tables


def told(problem: str, report: Any) -> str:
    return next((line for line in report if problem in line), "")


def test_a_table_is_read_as_it_was_drawn(tmp_path: Path) -> None:
    rows = tables.mmbench_rows(7, splits=("dev", "test"))
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "MMBench_DEV_EN")
    assert len(table.questions) == len(rows)
    for question, row in zip(table.questions, rows, strict=True):
        assert question.index == row["index"]
        assert question.text == row["question"]
        assert dict(question.options) == {letter: row[letter] for letter in "ABCD" if row[letter] != ""}
        assert (question.answer, question.split, question.hint) == (row["answer"], row["split"], row["hint"])
        assert (question.category, question.l2_category) == (row["category"], row["l2-category"])
        assert question.group == row["index"] % 1_000_000
    assert table.report == []
    assert table.has_answers


def test_a_rotation_shows_the_picture_of_its_question(tmp_path: Path) -> None:
    rows = tables.mmbench_rows(3)
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "MMBench_DEV_EN")
    by_index = {question.index: question for question in table.questions}
    base = np.asarray(table.picture(by_index[0]))
    assert base.shape == (32, 40, 3)
    assert np.array_equal(np.asarray(table.picture(by_index[1_000_000])), base)
    assert table.picture_key(by_index[1_000_000]) == table.picture_key(by_index[0])
    assert table.picture_key(by_index[1]) != table.picture_key(by_index[0])


def test_words_that_spreadsheets_take_for_missing_are_options_and_questions(tmp_path: Path) -> None:
    # VLMEvalKit loses such options: pandas reads them as NaN
    row = tables.choice_rows(1)[0] | {
        "A": "None",
        "B": "NA",
        "C": "nan",
        "D": "null",
        "hint": "N/A",
        "category": "NULL",
    }
    question = read_table(tables.write_tsv(tmp_path / "t.tsv", [row]), "SEEDBench_IMG").questions[0]
    assert dict(question.options) == {"A": "None", "B": "NA", "C": "nan", "D": "null"}
    assert (question.hint, question.category) == ("N/A", "NULL")


def test_numbers_keep_their_spelling(tmp_path: Path) -> None:
    # a column of numbers with an empty cell becomes 1.0, 2.0 in pandas
    rows = tables.choice_rows(2)
    rows[0] |= {"A": "007", "B": "1", "C": "1e3", "D": ""}
    question = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "SEEDBench_IMG").questions[0]
    assert dict(question.options) == {"A": "007", "B": "1", "C": "1e3"}


def test_a_list_of_pictures_is_read_and_told(tmp_path: Path) -> None:
    rows = tables.choice_rows(2)
    both = [base64.b64decode(rows[0]["image"]), tables.drawn("white", "square", seed=9)]
    rows[0]["image"] = str([tables.base64_of(data) for data in both])
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "SEEDBench_IMG")
    assert len(table.pictures(table.questions[0])) == 2
    assert np.array_equal(table.picture(table.questions[0]), table.pictures(table.questions[0])[0])
    assert "index 0" in told("several pictures", table.report)


def test_rows_without_a_picture_are_left_out_and_told(tmp_path: Path) -> None:
    rows = tables.choice_rows(3)
    rows[1]["image"] = ""
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "SEEDBench_IMG")
    assert [question.index for question in table.questions] == [0, 2]
    assert "index 1 (line 3)" in told("no picture", table.report)


def test_g_index_names_the_groups(tmp_path: Path) -> None:
    rows = tables.mmbench_rows(2)
    rows = [row | {"index": at, "g_index": row["index"] % tables.ROTATION} for at, row in enumerate(rows)]
    for row in rows:  # pictures are still those of rows 0 and 1
        row["image"] = row["image"] if len(row["image"]) > 64 else str(int(row["image"]))
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "MMBench_DEV_EN_V11")
    assert [question.group for question in table.questions] == [row["g_index"] for row in rows]


def test_indices_may_be_words(tmp_path: Path) -> None:
    rows = [row | {"index": f"q{row['index']}"} for row in tables.choice_rows(2)]
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "SEEDBench_IMG")
    assert [question.index for question in table.questions] == ["q0", "q1"]
    assert (table.key("q1"), table.key("q2"), table.key(1)) == ("q1", None, None)


def test_a_row_is_found_by_number_or_text(tmp_path: Path) -> None:
    table = read_table(tables.write_choice(tmp_path / "t.tsv", 3), "SEEDBench_IMG")
    assert [table.key(value) for value in (2, "2", 2.0, "02", 3, "x", None, True, 1.5)] == [2, 2, 2, 2] + [None] * 5


def test_equal_content_has_an_equal_fingerprint(tmp_path: Path) -> None:
    one = read_table(tables.write_choice(tmp_path / "a.tsv"), "SEEDBench_IMG")
    two = read_table(tables.write_choice(tmp_path / "b.tsv"), "AI2D_TEST", check_pictures=False)
    other = read_table(tables.write_choice(tmp_path / "c.tsv", seed=1), "SEEDBench_IMG")
    assert one.fingerprint == two.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("benchmark", "rows", "column"),
    [
        ("MMBench_DEV_EN", tables.mmbench_rows(2), "answer"),
        ("SEEDBench_IMG", tables.choice_rows(2), "A"),
        ("SEEDBench_IMG", tables.choice_rows(2), "image"),
        ("MME", tables.mme_rows(1), "image_path"),
        ("MME", tables.mme_rows(1), "category"),
        ("TextVQA_VAL", tables.textvqa_rows(2), "answer"),
        ("MathVista_MINI", tables.mathvista_rows(), "answer_option"),
        ("MMVet", tables.mmvet_rows(), "category"),
        ("MMVet", tables.mmvet_rows(), "index"),
    ],
)
def test_a_missing_column_is_named(tmp_path: Path, benchmark: str, rows: list[tables.Row], column: str) -> None:
    left = [{key: value for key, value in row.items() if key != column} for row in rows]
    with pytest.raises(UserError, match=f"cannot be a table of {benchmark}: it has no column {column};"):
        read_table(tables.write_tsv(tmp_path / "t.tsv", left), benchmark)


def test_the_test_set_of_mmbench_needs_no_answers(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "answer"} for row in tables.mmbench_rows(2)]
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "MMBench_TEST_EN")
    assert not table.has_answers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": 0}, r"the index was there before: 1 row: index 0 \(line 3\)"),
        ({"index": ""}, "there is no index"),
        ({"image": "17"}, r"said to be that of row '17', which has none: 1 row: index 1"),
        ({"image": "1"}, r"said to be that of row '1', which has none"),
        (
            {"image": tables.base64_of(b"no picture at all" * 10)},
            r"not a picture in one of the formats.*index 1 \(line 3",
        ),
        ({"image": tables.choice_rows(1)[0]["image"][:200]}, r"the picture cannot be used: .*index 1 \(line 3"),
        ({"image": "A" * 97}, "not base64"),
        ({"image": "[" + "a" * 100 + "]"}, "list of pictures cannot be read"),
        ({"A": "", "B": "", "C": "", "D": ""}, "there is no option: 1 row: index 1"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_before_inference(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    rows = tables.choice_rows(3)
    rows[1] |= change
    with pytest.raises(UserError, match=message):
        read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "SEEDBench_IMG")


def test_all_kinds_of_bad_rows_are_told_at_once(tmp_path: Path) -> None:
    rows = tables.choice_rows(4)
    rows[1]["index"], rows[3]["image"] = 0, "99"
    with pytest.raises(UserError, match=r"(?s)was there before.*said to be that of row '99'"):
        read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "SEEDBench_IMG")


def test_only_a_few_of_many_bad_rows_are_named(tmp_path: Path) -> None:
    rows = [row | {"image": "999"} for row in tables.choice_rows(40)]
    with pytest.raises(UserError, match=r"40 rows: .* and 34 more"):
        read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "SEEDBench_IMG")


def test_a_reference_may_lead_over_another_one(tmp_path: Path) -> None:
    rows = tables.choice_rows(3)
    rows[1]["image"], rows[0]["image"] = "0", "2"
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "SEEDBench_IMG")
    assert len({table.picture_key(question) for question in table.questions}) == 1


def test_a_reference_has_up_to_64_characters(tmp_path: Path) -> None:
    rows = tables.choice_rows(3)
    rows[0]["index"], rows[1]["image"] = "q" * 64, "q" * 64
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "SEEDBench_IMG")
    assert table.picture_key(table.questions[1]) == table.picture_key(table.questions[0])
    rows[0]["index"] = rows[1]["image"] = "q" * 65
    with pytest.raises(UserError, match="the picture cannot be used"):
        read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "SEEDBench_IMG")


def test_references_in_a_circle_end(tmp_path: Path) -> None:
    rows = tables.choice_rows(3)
    rows[1]["image"], rows[0]["image"] = "0", "1"
    with pytest.raises(UserError, match="which has none"):
        read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "SEEDBench_IMG")


def test_an_answer_that_names_no_option_is_counted(tmp_path: Path) -> None:
    rows = tables.choice_rows(3)
    rows[2]["answer"] = "F"
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "SEEDBench_IMG")
    assert "1 row: index 2 (line 4)" in told("the answer names no option", table.report)


def test_gaps_between_the_indices_are_counted(tmp_path: Path) -> None:
    rows = tables.choice_rows(6)
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", [*rows[:2], *rows[4:]]), "SEEDBench_IMG")
    assert told("not contiguous", table.report).endswith("1 gap: none between 1 and 4")


def test_missing_rotations_are_counted(tmp_path: Path) -> None:
    rows = [row for row in tables.mmbench_rows(3) if row["index"] not in (1_000_000, 2)]
    rows = [row | {"image": tables.choice_rows(1)[0]["image"]} for row in rows]
    report = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "MMBench_DEV_EN").report
    assert "index 0" in told("3 of 4 rotations", report)
    assert "index 1000002" in told("its unrotated row is missing", report)


@pytest.mark.parametrize(("answer", "problem"), [("Maybe", "neither Yes nor No"), ("", "neither Yes nor No")])
def test_an_answer_of_mme_that_is_neither_is_an_error(tmp_path: Path, answer: str, problem: str) -> None:
    rows = tables.mme_rows(1)
    rows[3]["answer"] = answer
    with pytest.raises(UserError, match=f"{problem}: 1 row: index 3"):
        read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "MME")


@pytest.mark.parametrize(
    "answer", ["red", "['red']", "['red', None]", "__import__('os').getcwd()", "[" * 5000, "['a'", "{'a': 1, 'b': 2}"]
)
def test_answers_of_textvqa_that_are_no_list_are_an_error_and_never_run(tmp_path: Path, answer: str) -> None:
    rows = tables.textvqa_rows(2)
    rows[1]["answer"] = answer
    with pytest.raises(UserError, match="not a list of at least two texts: 1 row: index 1"):
        read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "TextVQA_VAL")


def test_words_for_indices_are_refused_where_rotations_are_counted(tmp_path: Path) -> None:
    rows = [
        row | {"index": f"q{row['index']}", "image": tables.choice_rows(1)[0]["image"]}
        for row in tables.mmbench_rows(2)
    ]
    with pytest.raises(UserError, match="index and g_index must be whole numbers"):
        read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "MMBench_DEV_EN")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_that_is_cut_within_a_row_is_an_error(tmp_path: Path, share: float) -> None:
    path = tables.write_choice(tmp_path / "t.tsv", 6)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"(?s)t.tsv.*(cut short|its last row may be cut)"):
        read_table(path, "SEEDBench_IMG")


def test_a_file_that_is_cut_within_its_last_word_is_told(tmp_path: Path) -> None:
    path = tables.write_mmbench(tmp_path / "t.tsv", 2)
    path.write_bytes(path.read_bytes()[:-2])  # the split of the last row is "de"
    report = read_table(path, "MMBench_DEV_EN").report
    assert "the file does not end with a line break: its last row may be cut" in report


@pytest.mark.parametrize("column", ["image", "category"])
def test_a_cut_last_row_is_an_error(tmp_path: Path, column: str) -> None:
    rows = tables.choice_rows(2)
    # whichever column is the last: in a picture the decoder notices, elsewhere cells are missing
    rows = [{**{key: value for key, value in row.items() if key != column}, column: row[column]} for row in rows]
    path = tables.write_tsv(tmp_path / "t.tsv", rows)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut short|the picture cannot be used"):
        read_table(path, "SEEDBench_IMG")


def test_headers_may_be_written_in_capitals_and_only_single_letters_are_options(tmp_path: Path) -> None:
    rows = [
        {"Index" if key == "index" else key: value for key, value in row.items()}
        | {"AB": "no option", "L2-Category": "x"}
        for row in tables.choice_rows(2)
    ]
    question = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), "SEEDBench_IMG").questions[0]
    assert list(question.options) == ["A", "B", "C", "D"]
    assert (question.fields["ab"], question.l2_category) == ("no option", "x")


def test_a_column_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    path = tables.write_choice(tmp_path / "t.tsv", 1)
    path.write_text(path.read_text().replace("category", "answer", 1))
    with pytest.raises(UserError, match="two columns called answer"):
        read_table(path, "SEEDBench_IMG")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"index\timage\tquestion\tA\tB\tanswer\n"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"empty|no row with a picture"):
        read_table(path, "SEEDBench_IMG")


def test_a_page_instead_of_a_table_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("<!doctype html><html><body>404</body></html>\n")
    with pytest.raises(UserError, match="it has no column index"):
        read_table(path, "MME")


def test_broken_pictures_are_only_told_where_none_are_needed(tmp_path: Path) -> None:
    rows = tables.choice_rows(2)
    rows[1]["image"] = tables.base64_of(b"broken" * 20)
    path = tables.write_tsv(tmp_path / "t.tsv", rows)
    table = read_table(path, "SEEDBench_IMG", need_pictures=False)
    assert len(table.questions) == 2
    assert "index 1" in told("the picture cannot be used", table.report)


def test_tables_are_looked_for_where_vlmevalkit_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tables.write_mme(tmp_path / "MME.tsv", 1)
    monkeypatch.setenv("LMUData", str(tmp_path))
    assert find_table("MME") == path
    monkeypatch.delenv("LMUData")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "LMUData").mkdir()
    path.rename(tmp_path / "LMUData" / "MME.tsv")
    assert find_table("MME") == tmp_path / "LMUData" / "MME.tsv"
    assert find_table("MME", tmp_path / "LMUData") == tmp_path / "LMUData" / "MME.tsv"


def test_a_file_of_any_name_is_taken_for_what_it_is_said_to_be(tmp_path: Path) -> None:
    path = tables.write_choice(tmp_path / "MMBench_DEV_EN.tsv", 3)
    assert find_table("SEEDBench_IMG", path) == path
    assert read_table(path, "SEEDBench_IMG").benchmark.family == "choice"


def test_a_table_that_is_not_there_says_how_to_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no table of MME at .*nowhere.tsv.*fetch it from https://.*/MME.tsv"):
        find_table("MME", tmp_path / "nowhere.tsv")
    with pytest.raises(UserError, match="not published"):
        find_table("MMBench_V11", tmp_path)
