"""What stands beside the papers' numbers, and what is said of the difference."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from common.reporting.tables import Spread, Table
from eval.report import benchmarks, classification, parameters, subjects
from eval.report.command import _CHECKS
from eval.report.find import Material, find
from tests.eval.report.world import (
    images_evaluation,
    make_run,
    of_paper,
    study_evaluation,
    subjects_evaluation,
    vlm_evaluation,
)


def found(root: Path) -> Material:
    material = find([root], _CHECKS)
    assert material.problems == []
    return material


def rows(table: Table) -> dict[str, dict[str, Any]]:
    names = [column.name for column in table.columns]
    return {str(row.values[0]): dict(zip(names, row.values, strict=True)) | {"group": row.group} for row in table.rows}


def test_a_run_that_keeps_to_the_paper_is_told_so_in_few_words(tmp_path: Path) -> None:
    of_paper(tmp_path, "a", diagnosed=False, method="goat")
    told = " ".join(classification.differences(found(tmp_path).groups))
    assert "GOAT" not in told
    assert "Head here: zero_shot" in told
    assert "1 seed" in told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"learning_rate": 5e-4}}, "train.learning_rate=0.0005 (paper: 0.0001)"),
        ({"train": {"epochs": 2.0}}, "train.epochs=2.0 (paper: the set’s own)"),
        ({"train": {"max_steps": 40}}, "train.max_steps ends it earlier or later"),
        ({"source": "my/folder"}, "pictures from my/folder, not from the Hub's copy"),
        ({"n": 40}, "measured on 40 pictures, where the paper's test split has 2,700"),
    ],
)
def test_what_differs_from_the_papers_setting_is_said(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    of_paper(tmp_path, "a", diagnosed=False, method="goat", **changes)
    assert f"GOAT: {words}" in " ".join(classification.differences(found(tmp_path).groups))


def test_one_row_of_ours_spans_the_sets_and_its_seeds(tmp_path: Path) -> None:
    for name, more in {"a": {}, "b": {"seed": 1}, "c": {"dataset": "dtd", "n": 1880}}.items():
        of_paper(tmp_path, name, diagnosed=False, method="goat", trainable_parameters=1_990_656, **more)
    [row] = classification.measured_rows(found(tmp_path).groups)
    assert (row.name, row.params_percent) == ("GOAT", 2.24)
    mean = row.value("eurosat")
    assert mean == Spread(pytest.approx(55.0), pytest.approx(10 / math.sqrt(2)), 2)
    assert row.value("dtd") == Spread(50.0, None, 1)


def test_measurements_on_other_pictures_have_a_table_of_their_own(tmp_path: Path) -> None:
    images_evaluation(tmp_path / "e", "runs/a", source="elsewhere", split="validation", skipped=2)
    [row] = rows(classification.evaluations_table(found(tmp_path).of("images"))).values()
    assert (row["run"], row["data"], row["split"]) == ("runs/a", "signs (elsewhere)", "validation")
    assert (row["accuracy, %"], row["n"], row["left out"]) == (75.0, 40, 2)


def test_a_measurement_goes_by_method_and_seed_and_by_its_folder_where_two_share_them(tmp_path: Path) -> None:
    images_evaluation(tmp_path / "a", "runs/a", seed=0)
    images_evaluation(tmp_path / "b", "runs/b", seed=1)
    images_evaluation(tmp_path / "c", "runs/c", seed=1)
    names = classification.names_of(found(tmp_path).of("images"))
    assert names == ["LoRA, seed 0", "LoRA, seed 1, runs/b", "LoRA, seed 1, runs/c"]


def test_two_evaluations_of_one_run_are_two_rows_with_different_names(tmp_path: Path) -> None:
    vlm_evaluation(tmp_path / "one", "MoSLoRA")
    vlm_evaluation(tmp_path / "one", "MoSLoRA", "SEEDBench_IMG")
    vlm_evaluation(tmp_path / "two", "MoSLoRA")
    vlm_evaluation(tmp_path / "two", "MoSLoRA", answer="likelihood")
    lines = benchmarks.lines_of(found(tmp_path).of("vlm"))
    assert [(sorted(line.found), line.answer) for line in lines] == [
        (["MMBench_DEV_EN", "SEEDBench_IMG"], "generate"),
        (["MMBench_DEV_EN"], "generate"),
        (["MMBench_DEV_EN"], "likelihood"),
    ]
    assert len({line.label for line in lines}) == 3
    assert lines[2].label == f"MoSLoRA, by likelihood, {tmp_path / 'two'}"


def test_a_summary_counts_only_where_its_benchmarks_are_not_there(tmp_path: Path) -> None:
    summary = {"task": "vlm", "label": "MoSLoRA", "metrics": {"MMBench_DEV_EN": 50.0, "average": None}, "n": 10}
    vlm_evaluation(tmp_path, "MoSLoRA")
    (tmp_path / "results.json").write_text(json.dumps({**summary, "answer": "generate"}))
    [line] = benchmarks.lines_of(found(tmp_path).of("vlm"))
    assert line.values == {"MMBench_DEV_EN": 41.25}
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "results.json").write_text(json.dumps(summary))
    [line] = benchmarks.lines_of(found(alone).of("vlm"))
    assert (line.label, line.values) == ("MoSLoRA", {"MMBench_DEV_EN": 50.0})


def test_how_a_model_was_asked_is_said_beside_the_papers_row(tmp_path: Path) -> None:
    config = {"model": {"language_model": "my/llama", "vision_tower": "my/clip", "quantization": "none"}}
    run = make_run(tmp_path, "run", diagnosed=False, task="llava", config=config)
    vlm_evaluation(run / "eval_vlm", "A", run=str(run), model=None, incomplete_allowed=True)
    vlm_evaluation(tmp_path / "b", "B", "MMBench_TEST_EN", run=str(tmp_path / "gone"), model=None, answer="likelihood")
    vlm_evaluation(tmp_path / "c", "C", engine=None)
    told = benchmarks.differences(benchmarks.lines_of(found(tmp_path).of("vlm")))
    by_label = {line.split(":")[0]: line for line in told}
    assert "base my/llama + my/clip;" in by_label["A"]
    assert "allowed to be incomplete: MMBench_DEV_EN" in by_label["A"]
    assert f"its run {tmp_path / 'gone'} is not there any more" in by_label["B"]
    assert "likelihood instead of an answer" in by_label["B"]
    assert "another split or version than the nine's: MMBench_TEST_EN" in by_label["B"]
    assert "answers from elsewhere" in by_label["C"]


def test_all_models_are_on_one_radar(tmp_path: Path) -> None:
    vlm_evaluation(tmp_path / "one", "A")
    vlm_evaluation(tmp_path / "two", "B")
    section = benchmarks.benchmarks_section(found(tmp_path), tmp_path / "plots")
    assert section is not None
    assert [path.name for path in (tmp_path / "plots").glob("*.png")] == ["radar_MMBench_DEV_EN.png"]


def test_only_the_protocols_features_stand_beside_the_papers(tmp_path: Path) -> None:
    subjects_evaluation(tmp_path / "same", models={"dino": "facebook/dino-vits16"})
    subjects_evaluation(tmp_path / "other", models={"dino": "my/dino"})
    other, same = found(tmp_path).of(subjects.TASK)
    beside, alone = rows(subjects.table(same)), rows(subjects.table(other))
    assert beside["DreamBooth (Imagen)"]["DINO"] == 0.696
    assert beside["moslora"]["group"] == "measured here"
    assert set(alone) == {"real pictures", "lora", "moslora"}
    assert alone["lora"]["group"] == "measured with DINO: my/dino"
    assert alone["lora"]["DINO"] == Spread(pytest.approx(0.505), pytest.approx(0.0), 2)
    assert any("are another quantity" in line for line in subjects.differences(other.content))
    assert any("2 subjects (cat2, dog)" in line for line in subjects.differences(same.content))


def test_a_study_is_counted_from_its_file_as_it_was_from_its_votes(tmp_path: Path) -> None:
    study_evaluation(tmp_path)
    table = subjects.study_table(found(tmp_path).of("study")[0])
    row = rows(table)["subject similarity"]
    assert row["win %"].startswith("50.0 [")
    assert row["loss %"].startswith("0.0 [")
    assert (row["votes"], row["raters"], row["group"]) == (6, 3, "moslora against lora")


@pytest.mark.parametrize(
    ("name", "known"),
    [("meta-llama/Meta-Llama-3-8B-Instruct", True), ("/models/llama3_8b", True), ("lmsys/vicuna-7b", False)],
)
def test_parameters_stand_beside_the_papers_on_its_base_alone(name: str, known: bool, tmp_path: Path) -> None:
    config = {"model": {"language_model": name}, "adapter": {"method": "moslora", "r": 64}}
    make_run(tmp_path, "a", diagnosed=False, task="llava", config=config, trainable_parameters=196_083_712)
    material = found(tmp_path)
    section = parameters.parameters_section(material, tmp_path)
    assert (section is not None) == known
    if known:
        table = rows(parameters.parameters_table(material.groups))
        assert table["LoRA"]["trained, M"] == 28.3
        assert table["MoSLoRA"]["group"] in ("trained here", "published, [M] Table 4 (parameter column)")
        assert "rank 64 on q_proj, k_proj" in parameters.differences(material.groups)[1]
