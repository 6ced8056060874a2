"""Counting against a count by hand, and the files that come out."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import pytest
from PIL import Image

from common.reporting.tables import render_text
from eval.study.database import Study
from eval.study.export import plot_results, results_csv, results_json, results_table, votes_csv, write_results
from eval.study.questions import QUESTIONS, RESULTS, SIDES, result_of, side_of
from eval.study.results import Vote, compare, count
from tests.eval.study.world import METHODS, answer, enter, invite, make_study


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Three raters: two finish, one stops after two pairs, one never begins."""
    study, _ = make_study(tmp_path_factory.mktemp("rated"))
    dice = random.Random(0)
    for token, pairs in zip(invite(study, 4), (6, 6, 2, 0), strict=True):
        client = enter(study, token)
        for _ in range(pairs):
            answer(client, dice.choice(SIDES), dice.choice(SIDES))
    return study


def test_sides_and_results_are_inverse() -> None:
    for swapped in (False, True):
        assert [side_of(result_of(side, swapped), swapped) for side in SIDES] == list(SIDES)
        assert [result_of(side_of(result, swapped), swapped) for result in RESULTS] == list(RESULTS)
    assert result_of("left", False) == result_of("right", True) == "first"


def test_wins_ties_and_losses_are_those_of_a_count_by_hand() -> None:
    # Two raters, three pairs; the first method wins twice, ties twice, loses twice.
    table = {(1, 1): "first", (1, 2): "first", (1, 3): "tie", (2, 1): "tie", (2, 2): "second", (2, 3): "second"}
    found = compare(QUESTIONS[0], "A", "B", [Vote(r, p, result, p == 2) for (r, p), result in table.items()])
    assert (found.win.count, found.tie.count, found.loss.count) == (2, 2, 2)
    assert found.delta == 0
    assert (found.votes, found.raters, found.pairs, found.shared_pairs) == (6, 2, 3, 3)
    # No two agree: P = 0, chance = 3 (1/3)², so kappa = (0 - 1/3) / (2/3).
    assert found.kappa == pytest.approx(-0.5)
    # Not ties: (1,1) first on the left; (1,2) first on the right; (2,2) second on the left; (2,3) second on the right.
    assert found.left == pytest.approx(0.5)


def test_every_vote_is_counted_and_unfinished_raters_too(rated: Study) -> None:
    with rated.reading() as db:
        results = count(db)
        lines = list(csv.DictReader(io.StringIO(votes_csv(db))))
    assert results.votes == len(lines) == (6 + 6 + 2) * 2
    assert results.finished == 2
    assert [(rater.answered, rater.total) for rater in results.raters] == [(6, 6), (6, 6), (2, 6), (0, 6)]
    for comparison in results.comparisons:
        mine = [line["result"] for line in lines if line["question"] == comparison.question.key]
        assert (comparison.win.count, comparison.tie.count, comparison.loss.count) == tuple(map(mine.count, RESULTS))
        assert comparison.win.low < comparison.win.value < comparison.win.high
        assert comparison.raters == 3


def test_results_json_has_the_form_of_the_house(rated: Study) -> None:
    with rated.reading() as db:
        content = json.loads(results_json(count(db)))
    assert content["task"] == "study"
    assert content["n"] == 28
    assert {"metrics", "seed", "config_hash"} <= content.keys()
    for question in QUESTIONS:
        shares = [content["metrics"][f"{question.key}/{part}"] for part in ("win", "tie", "loss")]
        assert sum(shares) == pytest.approx(1)
        assert content["metrics"][f"{question.key}/delta"] == pytest.approx(shares[0] - shares[2])
    assert all(isinstance(value, float) for value in content["metrics"].values())
    assert content["comparisons"][0]["first"] == METHODS[0]


def test_files_are_written_and_the_same_votes_give_the_same_bytes(rated: Study, tmp_path: Path) -> None:
    with rated.reading() as db:
        paths = write_results(db, count(db), tmp_path / "out")
        first = {path.name: path.read_bytes() for path in paths}
        again = {path.name: path.read_bytes() for path in write_results(db, count(db), tmp_path / "out")}
    assert first.keys() == {"results.json", "results.csv", "votes.csv", "results.png", "results.svg"}
    assert first == again
    with Image.open(tmp_path / "out" / "results.png") as image:
        assert min(image.size) > 200


def test_three_methods_keep_their_numbers_apart(tmp_path: Path) -> None:
    study, _ = make_study(tmp_path, methods=("a", "b", "c"))
    client = enter(study, invite(study)[0])
    for _ in range(18):
        answer(client)
    with study.reading() as db:
        results = count(db)
    assert [(c.first, c.second, c.votes) for c in results.comparisons[::2]] == [
        ("a", "b", 6),
        ("a", "c", 6),
        ("b", "c", 6),
    ]
    assert "a/c/subject_similarity/win" in json.loads(results_json(results))["metrics"]
    assert "a against c" in render_text(results_table(results))


def test_a_study_without_a_vote_says_so_instead_of_numbers(study: Study, tmp_path: Path) -> None:
    with study.reading() as db:
        results = count(db)
    assert json.loads(results_json(results))["metrics"] == {}
    assert len(results_csv(results).splitlines()) == 3
    assert "–" in render_text(results_table(results))
    assert plot_results(tmp_path / "empty.png", results).is_file()


def test_no_spreadsheet_takes_a_prompt_for_a_formula(rated: Study) -> None:
    with rated.writing() as db:
        db.execute("UPDATE items SET prompt = '=HYPERLINK(\"http://x\")'")
    with rated.reading() as db:
        cells = [cell for row in csv.reader(io.StringIO(votes_csv(db))) for cell in row]
    assert not any(cell.startswith("=") for cell in cells)
    assert any(cell.startswith("'=HYPERLINK") for cell in cells)


def test_the_interval_of_delta_counts_losses_against_wins() -> None:
    for result, expected in (("first", 1.0), ("tie", 0.0), ("second", -1.0)):
        found = compare(QUESTIONS[0], "A", "B", [Vote(r, p, result, False) for r in range(3) for p in range(3)])
        assert (found.delta_low, found.delta, found.delta_high) == (expected, expected, expected)
