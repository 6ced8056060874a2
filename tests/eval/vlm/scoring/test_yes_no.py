"""MME."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from eval.vlm.benchmarks import find_benchmark
from eval.vlm.scoring import Scores, extract_yes_no, score
from eval.vlm.table import read_table
from tests.eval.vlm import tables
from tests.eval.vlm.scoring import reference

MME = find_benchmark("MME")


def scored(tmp_path: Path, rows: list[tables.Row], predictions: dict[Any, str], **options: Any) -> Scores:
    return score(MME, read_table(tables.write_tsv(tmp_path / "t.tsv", rows), MME), predictions, **options)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Yes", "Yes"),
        ("no.", "No"),
        ("YES!", "Yes"),
        ("Yes, it is.", "Yes"),
        ("No, there is not", "No"),
        ("yes or no", None),
        ("No, yes", None),
        ("", None),
        ("maybe", None),
        ("nothing", None),
        ("yes-no", None),
        ("Yes</s>", "Yes"),
        ("是", None),
        ("The answer is (yes)", "Yes"),
        # beside a space elsewhere the dash vanishes and joins the words
        ("well - yes-man", None),
        ("n/a", None),
        ("None", None),
    ],
)
def test_yes_and_no_are_read_as_words(text: str, meant: str | None) -> None:
    assert extract_yes_no(text) == meant


def test_an_oracle_gets_all_2800(tmp_path: Path) -> None:
    rows = tables.mme_rows(2)
    found = scored(tmp_path, rows, tables.right_answers(rows)).metrics
    assert (found["perception"], found["cognition"], found["total"], found["scaled"]) == (2000, 800, 2800, 100)
    assert list(found["category"]) == [*tables.PERCEPTION, *tables.COGNITION]
    assert "missing_categories" not in found


def test_always_yes_gets_half_of_the_single_points_and_no_pair(tmp_path: Path) -> None:
    rows = tables.mme_rows(3)
    found = scored(tmp_path, rows, {row["index"]: "Yes" for row in rows}).metrics
    assert found["total"] == 14 * 50
    assert found["scaled"] == 25.0


def test_both_questions_of_a_picture_must_be_right_for_the_second_hundred(tmp_path: Path) -> None:
    rows = tables.mme_rows(2)
    said = tables.right_answers(rows) | {0: "No", 2: "unsure"}  # one question of each picture of `existence`
    found = scored(tmp_path, rows, said).metrics
    assert found["category"]["existence"] == 50.0
    assert found["perception"] == 1850.0


def test_random_answers_agree_with_a_second_writing_of_the_rules(tmp_path: Path) -> None:
    dice = random.Random(8)
    rows = tables.mme_rows(5)
    said = {row["index"]: dice.choice(["Yes", "No", "yes.", "No, it is not", "hm"]) for row in rows}
    meant = {"Yes": "Yes", "yes.": "Yes", "No": "No", "No, it is not": "No", "hm": None}
    found = scored(tmp_path, rows, said).metrics
    expected = reference.mme(rows, {index: meant[text] for index, text in said.items()})
    assert found["category"] == pytest.approx(expected, abs=1e-9)  # few terms in float64
    assert found["perception"] == pytest.approx(sum(expected[name] for name in tables.PERCEPTION), abs=1e-9)
    assert found["cognition"] == pytest.approx(sum(expected[name] for name in tables.COGNITION), abs=1e-9)


def test_a_missing_category_is_reported(tmp_path: Path) -> None:
    # VLMEvalKit ends with a KeyError
    rows = tables.mme_rows(1, categories=["existence", "OCR", "code_reasoning"])
    found = scored(tmp_path, rows, tables.right_answers(rows))
    assert (found.metrics["perception"], found.metrics["cognition"]) == (400, 200)
    assert "count" in found.metrics["missing_categories"]
    assert len(found.metrics["missing_categories"]) == 11
    assert "lacks 11 of MME's 14 categories" in found.notes[0]


def test_an_unknown_category_is_in_no_sum(tmp_path: Path) -> None:
    rows = tables.mme_rows(1, categories=[*tables.PERCEPTION, *tables.COGNITION, "weather"])
    found = scored(tmp_path, rows, tables.right_answers(rows))
    assert (found.metrics["total"], found.metrics["category"]["weather"]) == (2800, 200)
    assert "weather" in found.notes[0]


def test_the_same_picture_in_two_categories_is_two_pictures(tmp_path: Path) -> None:
    rows = [row | {"image_path": "same.jpg"} for row in tables.mme_rows(1)]
    assert scored(tmp_path, rows, tables.right_answers(rows)).metrics["total"] == 2800


def test_a_picture_with_one_question_is_an_error_that_names_it(tmp_path: Path) -> None:
    rows = tables.mme_rows(2)[1:]
    said = tables.right_answers(rows)
    with pytest.raises(UserError, match=r"existence: existence/0.jpg \(1 question\)"):
        scored(tmp_path, rows, said)
    found = scored(tmp_path, rows, said, allow_incomplete=True)
    assert found.metrics["category"]["existence"] == 200.0
    assert "existence: existence/0.jpg" in found.notes[0]


def test_of_a_picture_with_more_questions_the_first_two_are_the_pair(tmp_path: Path) -> None:
    rows = tables.mme_rows(2)
    rows[2]["image_path"] = rows[3]["image_path"] = rows[0]["image_path"]
    said = tables.right_answers(rows) | {3: "Yes"}
    assert scored(tmp_path, rows, said).metrics["category"]["existence"] == 75.0 + 100.0
