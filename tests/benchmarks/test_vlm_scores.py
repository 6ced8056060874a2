"""The comparison with VLMEvalKit asks what it promises to ask; VLMEvalKit itself is not at hand where tests run."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from eval.vlm.benchmarks import find_benchmark
from eval.vlm.scoring import score
from eval.vlm.table import read_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("vlm_scores")


def test_every_family_gets_two_hundred_answers_and_the_awkward_ones(scores: ModuleType) -> None:
    whole = {name: answers for name, what, (_, answers) in scores.tables() if what != "read as missing"}
    families = {find_benchmark(name).family for name in whole}
    assert families == {"choice", "circular", "yes_no", "vqa", "judged"}
    assert min(map(len, whole.values())) >= 200
    for name in ("SEEDBench_IMG", "MMBench_DEV_EN"):
        said = list(whole[name].values())
        kinds = (r"[A-D]\.", r"\([A-D]\)", "The answer is [A-D]", "[a-d]", "green|red|blue", "", "[A-D] or [A-D]")
        for kind in (*kinds, "答案是[A-D]", "（[A-D]）", "Sorry, I can't help with images of people yet\\."):
            assert any(re.fullmatch(kind, answer) for answer in said), (name, kind)
    assert {"None", "NA"} <= {answer for _, what, (_, found) in scores.tables() for answer in found.values()}


def test_its_tables_can_be_read_and_neither_all_nor_nothing_is_right(scores: ModuleType, tmp_path: Path) -> None:
    for name, _, (rows, answers) in scores.tables():
        benchmark = find_benchmark(name)
        scores.write_table(tmp_path / "table.tsv", rows)
        table = read_table(tmp_path / "table.tsv", benchmark, check_pictures=False, progress=False)
        judged = benchmark.family == "judged"
        found = score(benchmark, table, answers, allow_incomplete=judged, judge=scores.Marked() if judged else None)
        hits = [float(row["hit"]) for row in found.rows]
        assert 0 < sum(hits) < len(hits), name


def test_every_defect_that_is_shown_is_in_the_document(scores: ModuleType) -> None:
    defects = importlib.import_module("vlm_defects").DEFECTS
    told = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split("we do not copy")[1].split("##")[0]
    lines = [line for line in told.splitlines() if line.startswith("| ")][1:]
    # one line tells of both kinds of old results, and one of the exit status, which takes a whole run to show
    assert len(lines) == len(defects) - 1 + 1
    for word in (
        "_result.pkl",
        "_auxmatch",
        "rotations",
        "unrotated",
        "14 categories",
        "md5",
        ".jpg",
        "eval",
        "VERBOSE",
    ):
        assert word in told
        assert any(word in f"{name} {line}" for name in defects for line in lines)
