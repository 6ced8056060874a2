"""What all families share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.vlm.benchmarks import BENCHMARKS, find_benchmark
from eval.vlm.scoring import main_figure, score
from eval.vlm.table import read_table
from tests.eval.vlm import tables

FAMILIES = [
    ("MMBench_DEV_EN", tables.mmbench_rows(5)),
    ("MMBench_TEST_CN_V11", tables.mmbench_rows(5, language="cn", splits=("test",))),
    ("SEEDBench_IMG", tables.choice_rows(5)),
    ("MME", tables.mme_rows(1)),
]


@pytest.mark.parametrize(("name", "rows"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_an_oracle_has_100_percent_in_the_papers_unit(tmp_path: Path, name: str, rows: list[tables.Row]) -> None:
    benchmark = find_benchmark(name)
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), benchmark)
    found = score(benchmark, table, tables.right_answers(rows))
    figure = main_figure(benchmark, found.metrics)
    assert figure is not None
    assert figure[1] == 100.0
    assert len(found.rows) == len(rows)
    json.dumps([found.metrics, list(found.rows)], allow_nan=False)  # what goes into files


@pytest.mark.parametrize("name", ["MathVista_MINI", "MMVet"])
def test_without_a_judge_there_is_no_number(tmp_path: Path, name: str) -> None:
    rows = tables.mathvista_rows() if name == "MathVista_MINI" else tables.mmvet_rows()
    benchmark = find_benchmark(name)
    table = read_table(tables.write_tsv(tmp_path / "t.tsv", rows), benchmark)
    found = score(benchmark, table, {row["index"]: "A" for row in rows})
    assert (found.metrics, found.not_scored) == ({}, "no judge")
    assert main_figure(benchmark, found.metrics) is None


@pytest.mark.parametrize(
    ("name", "metrics", "figure"),
    [
        ("MMBench_DEV_EN", {"dev": {"overall": 61.5}}, ("dev overall", 61.5)),
        ("MMBench", {"dev": {"overall": 1.0}, "test": {"overall": 2.0}}, ("test overall", 2.0)),
        ("MMBench_DEV_EN", {"none": {"overall": 3.0}}, ("none overall", 3.0)),
        ("AI2D_TEST", {"overall": 4.0}, ("overall", 4.0)),
        ("TextVQA_VAL", {"accuracy": 5.0}, ("accuracy", 5.0)),
        ("MME", {"total": 1400.0, "scaled": 50.0}, ("scaled", 50.0)),
        ("MMVet", {"overall": 6.0}, ("overall", 6.0)),
        ("MME", {}, None),
    ],
)
def test_the_papers_figure_of_each_benchmark(
    name: str, metrics: dict[str, Any], figure: tuple[str, float] | None
) -> None:
    assert main_figure(BENCHMARKS[name], metrics) == figure
