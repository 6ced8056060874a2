"""What is left of an evaluation."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.reporting.tables import render_text
from eval.vlm.benchmarks import BENCHMARKS, NINE, find_benchmark
from eval.vlm.results import (
    abilities_of,
    average,
    beside_paper,
    category_table,
    write_radar,
    write_results,
    write_summary,
)
from eval.vlm.scoring import Scores

MMBENCH, MME, MMVET = (find_benchmark(name) for name in ("MMBench_DEV_EN", "MME", "MMVet"))
ABILITIES = {"attribute_reasoning": 60.0, "coarse_perception": 80.0, "logic_reasoning": 25.0, "relation_reasoning": 0.0}
METRICS = {"dev": {"overall": 41.25, "category": {"ocr": 50.0, "action": 30.0}, "l2-category": ABILITIES}}
MME_METRICS = {"perception": 1500.0, "cognition": 320.0, "total": 1820.0, "scaled": 65.0, "category": {"OCR": 140.0}}


def scores(metrics: dict[str, Any], **more: Any) -> Scores:
    return Scores(metrics, [{"index": 0, "prediction": "A, =1+1", "hit": True}, {"index": 1, "hit": False}], 2, **more)


def measured(headline: float | None, **more: Any) -> dict[str, Any]:
    return {"headline": headline, "metrics": {}, "n": 10, "notes": [], **more}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_benchmarks_folder_holds_results_rows_categories_and_radar(tmp_path: Path) -> None:
    content = write_results(tmp_path / "b", MMBENCH, scores(METRICS, notes=["odd"]), more={"run": "r", "seed": 3})
    assert read(tmp_path / "b" / "results.json") == content
    assert content["task"] == "vlm"
    assert (content["benchmark"], content["family"], content["run"], content["seed"]) == (
        "MMBench_DEV_EN",
        "circular",
        "r",
        3,
    )
    assert content["metrics"] == METRICS
    assert (content["headline"], content["n"], content["notes"]) == (41.25, 2, ["odd"])
    with (tmp_path / "b" / "rows.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"index": "0", "prediction": "A, =1+1", "hit": "True"},
            {"index": "1", "prediction": "", "hit": "False"},
        ]
    with (tmp_path / "b" / "categories.csv").open(encoding="utf-8", newline="") as file:
        found = {(row["group"], row["name"]): float(row["value"]) for row in csv.DictReader(file)}
    assert found[("dev", "overall")] == 41.25
    assert found[("dev, category", "ocr")] == 50.0
    assert found[("dev, l2-category", "relation_reasoning")] == 0.0
    with Image.open(tmp_path / "b" / "radar.png") as image:
        assert image.format == "PNG"
    drawn = (tmp_path / "b" / "radar.svg").read_text(encoding="utf-8")
    for words in ("attribute", "coarse perception", "80.0", "25.0"):
        assert words in drawn


def test_pictures_of_an_earlier_evaluation_do_not_stay(tmp_path: Path) -> None:
    write_results(tmp_path, MMBENCH, scores(METRICS))
    write_results(tmp_path, MMBENCH, scores({"dev": {"overall": 10.0}}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["categories.csv", "results.json", "rows.csv"]


def test_what_has_no_score_has_no_number(tmp_path: Path) -> None:
    content = write_results(tmp_path, MMVET, Scores({}, [], 0, not_scored="no judge"))
    assert (content["headline"], content["metrics"], content["not_scored"]) == (None, {}, "no judge")


@pytest.mark.parametrize(
    ("name", "metrics", "expected"),
    [
        ("MME", MME_METRICS, 65.0),
        ("MMBench_DEV_EN", METRICS, 41.25),
        ("TextVQA_VAL", {"accuracy": 50.5}, 50.5),
        ("SEEDBench_IMG", {"overall": 70.0, "category": {"x": 1.0}}, 70.0),
    ],
)
def test_the_headline_is_what_the_paper_prints(
    tmp_path: Path, name: str, metrics: dict[str, Any], expected: float
) -> None:
    assert write_results(tmp_path, find_benchmark(name), scores(metrics))["headline"] == expected


def test_the_table_of_categories_has_every_number() -> None:
    content = {"metrics": MME_METRICS, "n": 40, "answer": "likelihood"}
    text = render_text(category_table(MME, content))
    for words in ("scaled", "65.0", "OCR", "140.0", "40 questions", "likelihood"):
        assert words in text


def test_the_average_is_that_over_all_nine_with_mme_scaled() -> None:
    values = dict(zip(NINE, (70.0, 60.0, 65.0, 58.0, 71.0, 48.0, 30.0, 35.0, 65.0), strict=True))
    assert average(values) == pytest.approx(502 / 9)
    assert average({**values, "MMVet": None}) is None
    assert average({name: value for name, value in values.items() if name != "MME"}) is None


def test_any_version_of_mmbench_stands_for_its_language() -> None:
    values: dict[str, float | None] = dict.fromkeys(NINE, 50.0)
    del values["MMBench_DEV_EN"]
    assert average(values) is None
    assert average({**values, "MMBench_TEST_EN_V11": 59.0}) == pytest.approx(51.0)
    # with both, the one among the nine counts
    assert average({**values, "MMBench_TEST_EN_V11": 59.0, "MMBench_DEV_EN": 41.0}) == pytest.approx(49.0)


def test_the_row_says_why_it_has_no_average(tmp_path: Path) -> None:
    whole = {name: measured(50.0) for name in NINE}
    assert write_summary(tmp_path, whole, "run")["metrics"]["average"] == 50.0
    for change, words in (
        ({"MMVet": measured(None, not_scored="no judge")}, "without a score: MM-Vet"),
        ({"MME": measured(50.0, metrics={"missing_categories": ["OCR"]})}, "in part only: MME"),
        ({"AI2D_TEST": measured(50.0, incomplete_allowed=True, notes=["left out"])}, "in part only: AI2D_TEST"),
    ):
        content = write_summary(tmp_path, {**whole, **change}, "run")
        assert content["metrics"]["average"] is None
        assert words in content["no_average"]
    assert write_summary(tmp_path, whole, "run", suffix="_likelihood")["no_average"] is None
    assert read(tmp_path / "results_likelihood.json")["metrics"]["average"] == 50.0
    assert read(tmp_path / "results.json")["metrics"]["average"] is None


def test_ours_stand_below_the_papers_rows(tmp_path: Path) -> None:
    table = beside_paper({"MoSLoRA (mine)": {"MMBench_DEV_EN": 71.5, "MME": 65.0, "average": 1.0}})
    heads = [column.name for column in table.columns]
    row = next(row for row in table.rows if row.values[0] == "MoSLoRA (mine)")
    assert row.values[heads.index("MMBench EN")].mean == 71.5  # type: ignore[union-attr]
    assert row.values[heads.index("MME")].mean == 65.0  # type: ignore[union-attr]
    assert row.values[heads.index("average of 9")] is None
    published = [row for row in table.rows if row.group != "measured"]
    assert any("MoSLoRA" in str(row.values[0]) for row in published)
    content = write_summary(tmp_path, {"MME": measured(65.0)}, "mine")
    assert content["metrics"] == {"MME": 65.0, "average": None}
    assert "| mine |" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "65.0" in (tmp_path / "results.csv").read_text(encoding="utf-8")


def test_every_title_is_a_column_of_the_papers_table() -> None:
    names = {column.name for column in beside_paper({}).columns}
    assert {BENCHMARKS[name].title for name in NINE} <= names


def test_several_runs_share_a_radar(tmp_path: Path) -> None:
    one = {"benchmark": "MMBench_DEV_EN", "metrics": METRICS}
    other = {
        "benchmark": "MMBench_DEV_EN",
        "metrics": {"dev": {"overall": 1.0, "l2-category": {"logic_reasoning": 5.0}}},
    }
    path = write_radar(tmp_path / "r.png", {"LoRA": one, "MoSLoRA": one, "no abilities": other})
    assert path is not None
    drawn = path.with_suffix(".svg").read_text(encoding="utf-8")
    assert "MoSLoRA" in drawn
    assert "no abilities" not in drawn
    assert write_radar(tmp_path / "r.png", {"no abilities": other}) is None


def test_the_radar_shows_the_split_of_the_headline() -> None:
    metrics = {"dev": {"overall": 1.0, "l2-category": {"a": 1.0}}, "test": {"overall": 2.0, "l2-category": {"a": 2.0}}}
    assert abilities_of(metrics) == {"a": 2.0}
    assert abilities_of({"overall": 1.0, "l2-category": {"a": 3.0}}) == {"a": 3.0}
    assert abilities_of(MME_METRICS) == {}
