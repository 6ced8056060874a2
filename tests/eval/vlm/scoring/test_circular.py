"""Circular evaluation."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from eval.vlm.benchmarks import find_benchmark
from eval.vlm.scoring import Scores, check_scorable, score
from eval.vlm.table import Table, read_table
from tests.eval.vlm import tables
from tests.eval.vlm.scoring import reference

EN = find_benchmark("MMBench_DEV_EN")
Rows = list[tables.Row]


def table_of(tmp_path: Path, rows: Rows) -> Table:
    return read_table(tables.write_tsv(tmp_path / "t.tsv", rows), EN)


def scored(tmp_path: Path, rows: Rows, predictions: dict[Any, str], **options: Any) -> Scores:
    return score(EN, table_of(tmp_path, rows), predictions, **options)


def test_an_oracle_scores_100_in_everything(tmp_path: Path) -> None:
    rows = tables.mmbench_rows(9, splits=("dev", "test"))
    found = scored(tmp_path, rows, tables.right_answers(rows))
    assert set(found.metrics) == {"dev", "test"}
    for of_split in found.metrics.values():
        assert of_split["overall"] == 100.0
        assert set(of_split["category"].values()) == set(of_split["l2-category"].values()) == {100.0}
    assert found.n == 9


def test_always_a_scores_nothing_although_many_rows_are_right(tmp_path: Path) -> None:
    # every question with two options or more has a rotation whose answer is not A
    rows = tables.mmbench_rows(8)
    found = scored(tmp_path, rows, {row["index"]: "A" for row in rows})
    assert found.metrics["dev"]["overall"] == 0.0
    assert sum(row["hit"] for row in found.rows) == 8  # one rotation of each


def test_one_wrong_rotation_loses_the_question(tmp_path: Path) -> None:
    rows = tables.mmbench_rows(4)
    said = tables.right_answers(rows)
    last = max(row["index"] for row in rows)
    said[last] = "I cannot tell"
    found = scored(tmp_path, rows, said)
    assert found.metrics["dev"]["overall"] == 75.0
    group = [row for row in found.rows if row["group"] == last % 1_000_000]
    assert [row["all_rotations_hit"] for row in group] == [False] * len(group)
    assert sum(row["hit"] for row in group) == len(group) - 1


def test_random_answers_agree_with_a_second_writing_of_the_rules(tmp_path: Path) -> None:
    dice = random.Random(3)
    rows = tables.mmbench_rows(24, splits=("dev", "test"))
    table = table_of(tmp_path, rows)
    for share in (0.5, 0.8, 0.95):
        said = {
            row["index"]: row["answer"] if dice.random() < share else dice.choice(["A", "(B)", "a", "red", "", "NA"])
            for row in rows
        }
        found, expected = score(EN, table, said).metrics, reference.circular(rows, said)
        assert found.keys() == expected.keys()
        for split, numbers in expected.items():
            # 1e-9: the sums are of few numbers in float64
            assert found[split]["overall"] == pytest.approx(numbers["overall"], abs=1e-9)
            assert found[split]["category"] == pytest.approx(numbers["category"], abs=1e-9)
            assert found[split]["l2-category"] == pytest.approx(numbers["l2-category"], abs=1e-9)


def test_g_index_groups_rows_whatever_their_indices(tmp_path: Path) -> None:
    rows = tables.mmbench_rows(4)
    said = tables.right_answers(rows)
    wrong = 2_000_000
    said[wrong] = "Z"
    expected = scored(tmp_path, rows, said).metrics
    moved = [row | {"g_index": row["index"] % tables.ROTATION} for row in rows]
    names = {row["index"]: row["index"] if row["index"] < tables.ROTATION else 500 + at for at, row in enumerate(moved)}
    moved = [row | {"index": names[row["index"]]} for row in moved]
    found = scored(tmp_path, moved, {names[index]: text for index, text in said.items()}).metrics
    assert found == expected


def test_a_table_without_splits_has_one_called_none(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "split"} for row in tables.mmbench_rows(2)]
    assert scored(tmp_path, rows, tables.right_answers(rows)).metrics["none"]["overall"] == 100.0


def test_a_prediction_of_none_is_text(tmp_path: Path) -> None:
    # VLMEvalKit's way through a table of predictions makes NaN of it, and "nan" of that
    rows = tables.mmbench_rows(1)
    rows = [
        {key: "None" if value == "red" and key in "ABCD" else value for key, value in row.items()}
        | {"answer": next(letter for letter in "ABCD" if row[letter] == "red")}
        for row in rows
        if "red" in (row["A"], row["B"], row["C"], row["D"])
    ]
    assert rows, "the drawn question has a red option"
    assert scored(tmp_path, rows, {row["index"]: "None" for row in rows}).metrics["dev"]["overall"] == 100.0


def test_missing_rotations_are_an_error_that_names_the_questions(tmp_path: Path) -> None:
    rows = [row for row in tables.mmbench_rows(4) if row["index"] not in (1_000_000, 1_000_003)]
    with pytest.raises(
        UserError,
        match=r"the rotations of 2 questions are not all there: 0 \(3 of 4 rotations\), 3 \(3 of 4 rotations\)",
    ):
        scored(tmp_path, rows, tables.right_answers(rows))


def test_missing_rotations_can_be_found_before_there_are_predictions(tmp_path: Path) -> None:
    rows = [row for row in tables.mmbench_rows(4) if row["index"] != 1_000_000]
    table = table_of(tmp_path, rows)
    with pytest.raises(UserError, match="--allow-incomplete"):
        check_scorable(EN, table)
    check_scorable(EN, table, allow_incomplete=True)


def test_incomplete_sets_can_be_scored_by_what_is_there(tmp_path: Path) -> None:
    rows = [row for row in tables.mmbench_rows(4) if row["index"] != 1_000_000]
    found = scored(tmp_path, rows, tables.right_answers(rows), allow_incomplete=True)
    assert found.metrics["dev"]["overall"] == 100.0
    assert found.notes == ["not all of the rotations: 1 question: 0"]


def test_missing_predictions_are_an_error_that_names_them(tmp_path: Path) -> None:
    rows = tables.mmbench_rows(3)
    said = tables.right_answers(rows)
    del said[1_000_001], said[2]
    with pytest.raises(UserError, match=r"2 of 9 rows .* without a prediction: 2, 1000001"):
        scored(tmp_path, rows, said)


def test_missing_predictions_can_be_left_out(tmp_path: Path) -> None:
    rows = tables.mmbench_rows(3)
    said = tables.right_answers(rows)
    del said[1_000_001], said[2]
    found = scored(tmp_path, rows, said, allow_incomplete=True)
    # question 1 is judged by its two other rotations; question 2 has lost its unrotated row and is left out
    assert found.n == 2
    assert found.metrics["dev"]["overall"] == 100.0
    assert found.notes == [
        "left out without a prediction: 2 rows: 2, 1000001",
        "not all of the rotations: 2 questions: 1, 2",
        "left out without their unrotated rows: 1 question: 2",
    ]


def test_nothing_left_to_score_is_an_error(tmp_path: Path) -> None:
    rows = tables.mmbench_rows(2)
    with pytest.raises(UserError, match="no prediction"):
        scored(tmp_path, rows, {}, allow_incomplete=True)
    with pytest.raises(UserError, match="none of the questions"):
        scored(tmp_path, rows, {1_000_000: "A"}, allow_incomplete=True)


def test_a_test_set_without_answers_has_no_score(tmp_path: Path) -> None:
    benchmark = find_benchmark("MMBench_TEST_EN")
    rows = [{key: value for key, value in row.items() if key != "answer"} for row in tables.mmbench_rows(2)]
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), benchmark)
    found = score(benchmark, table, {row["index"]: "A" for row in rows})
    assert found.metrics == {}
    assert found.not_scored is not None
    assert "no answers" in found.not_scored


def test_rows_without_an_answer_among_others_are_an_error_or_left_out(tmp_path: Path) -> None:
    rows = tables.mmbench_rows(3)
    said = tables.right_answers(rows)
    rows[1]["answer"] = ""
    with pytest.raises(UserError, match="1 row without an answer: 1"):
        scored(tmp_path, rows, said)
    assert "left out without an answer: 1 row: 1" in scored(tmp_path, rows, said, allow_incomplete=True).notes
