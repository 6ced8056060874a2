"""VQA accuracy and the normalisation of answers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from eval.vlm.benchmarks import find_benchmark
from eval.vlm.scoring import score
from eval.vlm.scoring.vqa import vqa_accuracy
from eval.vlm.scoring.words import normalise
from eval.vlm.table import read_table
from tests.eval.vlm import tables
from tests.eval.vlm.scoring import reference

VQA = find_benchmark("TextVQA_VAL")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("Red", "red"),
        ("a Dog", "dog"),
        ("The  end", "end"),
        ("two", "2"),
        ("Ten", "10"),
        ("None", "0"),  # the challenge's own rule
        ("NA", "na"),
        ("hello, world", "hello world"),
        ("hello,world", "hello world"),
        ("1,000", "1000"),
        ("1,000 - a", "1000"),
        ("3.5", "3.5"),
        ("end.", "end"),
        ("U.S.A.", "usa"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # two apostrophes left out are not restored
        ("couldnt've", "couldn't've"),
        ("ow's'at", "'ow's'at"),
        ("somebody'd", "somebodyd"),  # the original's own slip
        ("line\nbreak\tand tab", "line break and tab"),
        ("(brackets)", "brackets"),
        ("a-b", "b"),
        ("x-y", "x y"),
        ("x - y", "x y"),
        ("", ""),
        ("数学", "数学"),
    ],
)
def test_answers_are_made_comparable(given: str, meant: str) -> None:
    assert normalise(given) == meant


def test_only_the_first_32_lone_periods_vanish() -> None:
    # a slip of the challenge's code, kept by VLMEvalKit
    assert normalise("." * 40) == "." * 8


@pytest.mark.parametrize(("agree", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_accuracy_by_how_many_of_ten_agree(agree: int, expected: float) -> None:
    # leaving each out once: with n of ten agreeing, n are left with n - 1 others and 10 - n with n
    assert vqa_accuracy("red", ["red"] * agree + ["blue"] * (10 - agree)) == pytest.approx(expected, abs=1e-12)


def test_random_answers_agree_with_a_second_writing_of_the_rules() -> None:
    dice = random.Random(4)
    for _ in range(2_000):
        people = dice.choices("abcd", k=dice.randrange(2, 12))
        answer = dice.choice("abcde")
        assert vqa_accuracy(answer, people) == pytest.approx(reference.agreement(answer, people), abs=1e-12)


def test_a_table_is_scored_in_percent(tmp_path: Path) -> None:
    rows = tables.textvqa_rows(4)
    rows[0]["answer"] = str(["red"] * 10)
    rows[1]["answer"] = str(["two"] * 3 + ["3"] * 7)
    rows[2]["answer"] = str(["None"] * 10)
    rows[3]["answer"] = '["5\\" pipe", "5\\" pipe", "5\\" pipe", "5\\" pipe", "x", "x"]'
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), VQA)
    found = score(VQA, table, {0: "The red.", 1: "2", 2: "None", 3: "x"})
    # the last: four of six leave both x, two leave one
    assert found.metrics == {"accuracy": pytest.approx(100 * (1 + 0.9 + 1 + (4 * 2 / 3 + 2 / 3) / 6) / 4, abs=1e-9)}
    assert [row["extracted"] for row in found.rows] == ["red", "2", "0", "x"]


def test_a_numeric_answer_is_text(tmp_path: Path) -> None:
    rows = [tables.textvqa_rows(1)[0] | {"answer": "[7, 7, 7, 7, '07', 8]"}]
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), VQA)
    assert score(VQA, table, {0: "7"}).metrics["accuracy"] == 100.0
    assert score(VQA, table, {0: "07"}).metrics["accuracy"] < 50.0
