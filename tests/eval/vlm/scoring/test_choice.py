"""Multiple choice without rotations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eval.vlm.benchmarks import find_benchmark
from eval.vlm.scoring import Scores, score
from eval.vlm.table import read_table
from tests.eval.vlm import tables

Rows = list[tables.Row]


def scored(tmp_path: Path, rows: Rows, predictions: dict[Any, str], name: str = "SEEDBench_IMG") -> Scores:
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), name)
    return score(find_benchmark(name), table, predictions)


def test_an_oracle_scores_100(tmp_path: Path) -> None:
    rows = tables.choice_rows(6)
    found = scored(tmp_path, rows, tables.right_answers(rows))
    assert found.metrics == {"overall": 100.0, "category": {"circle": 100.0, "square": 100.0}}
    assert found.n == 6


def test_every_row_counts_by_itself(tmp_path: Path) -> None:
    rows = tables.choice_rows(6)
    said = tables.right_answers(rows)
    said[0], said[2], said[3] = "no idea", "", "Z"
    found = scored(tmp_path, rows, said)
    assert found.metrics["overall"] == 50.0
    assert found.metrics["category"] == pytest.approx({"circle": 100 / 3, "square": 200 / 3})


def test_rows_say_what_was_read_out_of_them(tmp_path: Path) -> None:
    rows = tables.choice_rows(2)
    rows[0] |= {"A": "None", "B": "x", "C": "y", "D": "z", "answer": "A"}
    found = scored(tmp_path, rows, {0: "None", 1: "??"})
    assert found.rows[0] == {"index": 0, "prediction": "None", "extracted": "A", "answer": "A", "hit": True}
    assert found.rows[1]["extracted"] is None
    assert not found.rows[1]["hit"]


def test_an_option_called_none_stays_and_can_be_right(tmp_path: Path) -> None:
    # in VLMEvalKit the option disappears, and the letter with it
    rows = tables.choice_rows(1)
    rows[0] |= {"D": "None", "answer": "D"}
    assert scored(tmp_path, rows, {0: "D"}).metrics["overall"] == 100.0
    assert scored(tmp_path, rows, {0: "None"}).metrics["overall"] == 100.0


def test_splits_are_told_apart_where_the_table_has_them(tmp_path: Path) -> None:
    rows = [row | {"split": ("val", "test")[row["index"] % 2]} for row in tables.choice_rows(4)]
    said = tables.right_answers(rows) | {0: "Z", 2: "Z"}
    found = scored(tmp_path, rows, said, "ScienceQA_TEST").metrics
    assert found == {
        "val": {"overall": 0.0, "category": {"circle": 0.0}},
        "test": {"overall": 100.0, "category": {"square": 100.0}},
    }


def test_an_answer_that_names_no_option_is_wrong_whatever_is_said(tmp_path: Path) -> None:
    rows = tables.choice_rows(2)
    rows[0]["answer"] = "F"
    assert scored(tmp_path, rows, {0: "F", 1: rows[1]["answer"]}).metrics["overall"] == 50.0
