"""The drawn table in MMBench's form: its rows, and that its score can never pass for MMBench's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from eval.vlm.benchmarks import DRAWN, NINE, find_benchmark
from eval.vlm.command import main_mmbench
from eval.vlm.drawn import TABLE, drawn_table
from eval.vlm.question import groups_of
from eval.vlm.results import abilities_of, beside_paper, category_table, write_results
from eval.vlm.scoring import check_scorable, score
from eval.vlm.table import Table, find_table, read_table
from llava.demo import drawn_sets, sets_folder
from llava.demo.draw import write_sets
from llava.demo.scenes import KINDS

QUESTIONS = 24


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which a few drawn questions stand for all of them."""
    root = tmp_path_factory.mktemp("cache")
    write_sets(sets_folder(root), train=4, test=QUESTIONS)
    return root


@pytest.fixture
def table(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setenv("MOSGOAT_CACHE", str(cache))
    return read_table(find_table(DRAWN.name, Path(TABLE)), DRAWN)


def test_every_question_is_there_with_all_rotations_and_its_picture(table: Table, cache: Path) -> None:
    folder = drawn_sets(str(cache))
    asked = [json.loads(line) for line in (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(table.questions) == 4 * len(asked) == 4 * QUESTIONS
    assert not table.report
    check_scorable(DRAWN, table)
    for group, members in groups_of(table.questions).items():
        line = asked[int(group)]
        for turn, member in enumerate(members):
            assert member.index == int(group) + turn * 1_000_000
            assert member.text == line["text"]
            assert member.options[member.answer] == line["answer"]
            assert sorted(member.options.values()) == sorted(line["options"])
            assert (member.l2_category, member.split) == (line["kind"], "drawn")
        assert {member.answer for member in members} == set("ABCD"), "the right answer is each letter once"
        drawn = np.asarray(Image.open(folder / line["image"]).convert("RGB"))
        assert all(np.array_equal(np.asarray(table.picture(member)), drawn) for member in members)


def test_the_same_letter_to_everything_scores_nothing_and_an_oracle_everything(table: Table) -> None:
    same = score(DRAWN, table, {question.index: "A" for question in table.questions})
    right = score(DRAWN, table, {question.index: question.answer for question in table.questions})
    assert same.metrics["drawn"]["overall"] == 0.0
    assert right.metrics["drawn"]["overall"] == 100.0
    assert same.n == right.n == QUESTIONS


def test_the_kinds_of_questions_are_the_axes_of_the_radar(table: Table, tmp_path: Path) -> None:
    found = score(DRAWN, table, {question.index: question.answer for question in table.questions})
    content = write_results(tmp_path, DRAWN, found)
    assert set(abilities_of(content["metrics"])) == set(KINDS)
    assert (tmp_path / "radar.png").is_file()


def test_no_table_and_no_file_takes_its_score_for_mmbenchs(table: Table, tmp_path: Path) -> None:
    found = score(DRAWN, table, {question.index: question.answer for question in table.questions})
    content = write_results(tmp_path, DRAWN, found)
    assert content["benchmark"] == "DrawnQuestions"
    assert "no score of MMBench" in content["about"]
    assert "no score of MMBench" in category_table(DRAWN, content).caption
    alone = beside_paper({"mine": {DRAWN.name: 61.0}}, "likelihood")
    assert [column.name for column in alone.columns] == ["model", "drawn questions"]
    assert [row.values for row in alone.rows] == [("mine", 61.0)], "no published row"
    assert "no score of MMBench" in alone.caption
    beside = beside_paper({"mine": {DRAWN.name: 61.0, "MMBench_DEV_EN": 40.0}})
    at = [column.name for column in beside.columns].index("drawn questions")
    assert [row.values[at] is None for row in beside.rows][:-1] == [True] * (len(beside.rows) - 1)
    assert DRAWN.name not in NINE


def test_the_name_of_a_published_benchmark_is_refused_for_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds drawn questions and no MMBench_DEV_EN; leave --benchmark out"):
        find_table("MMBench_DEV_EN", Path(TABLE))
    words = ["--model", "builtin:drawn-llava", "--output", str(tmp_path), "--data"]
    with pytest.raises(UserError, match="holds drawn questions and no MMBench_TEST_CN"):
        main_mmbench([*words, TABLE, "--benchmark", "MMBench_TEST_CN"])
    with pytest.raises(UserError, match="builtin:mmbench does not ship with mosgoat; did you mean builtin:drawn-mm"):
        main_mmbench([*words, "builtin:mmbench"])


def test_it_is_written_once_and_found_by_its_name_alone(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MOSGOAT_CACHE", str(cache))
    monkeypatch.delenv("LMUData", raising=False)
    file = drawn_table()
    before = file.stat().st_mtime_ns
    assert find_table("DrawnQuestions") == find_table("DrawnQuestions", tmp_path) == file
    assert file.stat().st_mtime_ns == before
    own = tmp_path / "own.tsv"
    own.write_bytes(file.read_bytes())
    assert find_table("DrawnQuestions", own) == own
    assert find_benchmark("DrawnQuestions").family == "circular"


@pytest.mark.slow
def test_the_real_command_measures_the_shipped_model(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOSGOAT_CACHE", str(cache))
    words = ["--model", "builtin:drawn-llava", "--template", "llama3", "--data", TABLE, "--answer", "likelihood"]
    assert main_mmbench([*words, "--output", str(tmp_path / "first")]) == 0
    content = json.loads((tmp_path / "first" / "DrawnQuestions_likelihood" / "results.json").read_text())
    assert (content["benchmark"], content["answer"], content["n"]) == ("DrawnQuestions", "likelihood", QUESTIONS)
    summary = json.loads((tmp_path / "first" / "results_likelihood.json").read_text())
    assert summary["metrics"] == {"DrawnQuestions": content["headline"], "average": None}
    out = capsys.readouterr().out
    assert "no score of MMBench" in out
    assert "[M] Table 5" not in out
    assert "no average" not in out

    # a folder of an evaluation beside another one, without a run
    assert main_mmbench([*words, "--output", str(tmp_path / "second"), "--beside", str(tmp_path / "first")]) == 0
    assert (tmp_path / "second" / "radar_DrawnQuestions_likelihood.png").is_file()
    assert f"builtin:drawn-llava, {tmp_path / 'first'}" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"has no eval_vlm/results_likelihood.json, and no results_likelihood.json"):
        main_mmbench([*words, "--output", str(tmp_path / "third"), "--beside", str(tmp_path)])
