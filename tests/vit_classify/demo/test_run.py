"""`mosgoat vit demo`: the command line, its forecast, and a whole small demo with a run that fails."""

import json
import re
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from common.recipes import load
from vit_classify.config import VitRecipe, recipe_problems
from vit_classify.demo import builtin_data_dir, run
from vit_classify.demo.classes import NEW, PRETRAINING
from vit_classify.demo.draw import SPLITS
from vit_classify.demo.measure import collect
from vit_classify.demo.report import BASELINE, result_table
from vit_classify.demo.samples import first_of_each_class


def test_default_plan_is_every_method_before_the_next_seed(tmp_path: Path):
    cells = run.demo_cells(run.read_arguments(["--output", str(tmp_path), "--seeds", "2"]))
    assert [(cell.seed, cell.method) for cell in cells] == [(seed, method) for seed in (0, 1) for method in run.METHODS]
    assert len({cell.path for cell in cells}) == 8


def test_methods_differ_only_in_method_and_learning_rate(tmp_path: Path):
    cells = run.demo_cells(run.read_arguments(["--output", str(tmp_path), "--seeds", "1"]))
    assert run.METHODS[0] == BASELINE
    for cell in cells:
        recipe = cell.recipe
        assert recipe.model == cells[0].recipe.model
        assert recipe.data == cells[0].recipe.data
        assert recipe.adapter.r == 8
        assert recipe.train.epochs == cells[0].recipe.train.epochs
        assert recipe.train.batch_size == cells[0].recipe.train.batch_size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "lora,gaot"], r"'gaot'.*did you mean goat"),
        (["--methods", ","], "names nothing"),
        (["--seeds", "0"], "--seeds=0 must be at least 1"),
        (["--jobs", "0"], "--jobs=0 must be at least 1"),
    ],
)
def test_bad_options_say_what_to_do(words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        run.main(words)


def test_report_without_a_finished_run_says_so(tmp_path: Path):
    with pytest.raises(UserError, match="nothing to report"):
        run.main(["--output", str(tmp_path), "--only", "report"])


def test_forecast_uses_the_same_method_else_the_slowest():
    assert run.forecast({"lora": [10.0, 20.0]}, [], jobs=2) == ""
    assert "about 30 s left" in run.forecast({"lora": [10.0, 20.0]}, ["lora", "lora"], jobs=1)
    assert "about 15 s left" in run.forecast({"lora": [10.0, 20.0]}, ["lora", "lora"], jobs=2)
    assert "about 20 s left" in run.forecast({"lora": [20.0], "linear_probe": [5.0]}, ["goat"], jobs=2)
    assert "about 2.0 min left" in run.forecast({"lora": [60.0]}, ["goat", "lora"], jobs=1)


def test_samples_are_the_first_picture_of_each_class():
    assert first_of_each_class(["b", "b", "a", "b", "a", "c"]) == [0, 2, 5]


def test_tiny_recipe_is_sound_and_uses_what_ships():
    recipe = load(run.RECIPE, VitRecipe, problems=recipe_problems)
    assert recipe.adapter.method == "goat"
    assert recipe.data.source is not None
    assert len(list((builtin_data_dir(recipe.data.source) / "train").iterdir())) == len(NEW)


def test_shipped_base_was_made_with_the_present_drawings():
    log = json.loads((run.RECIPE.parents[1] / "demo" / "base" / "pretraining.json").read_text())
    assert log["classes"] == [sign.name for sign in PRETRAINING]
    assert not {sign.name for sign in NEW} & set(log["classes"])


@pytest.mark.slow
def test_a_small_demo_reports_survives_a_failure_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    recipe = yaml.safe_load(run.RECIPE.read_text())
    recipe["train"] |= {"max_steps": 6, "warmup_steps": 2}
    short = tmp_path / "short.yaml"
    short.write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(run, "RECIPE", short)
    output = tmp_path / "demo"
    # A file where the second run's folder should be: that run fails, the others must not.
    broken = output / "runs" / "signs" / "lora"
    broken.parent.mkdir(parents=True)
    broken.write_text("in the way")
    words = ["--output", str(output), "--methods", "linear_probe,lora,goat", "--seeds", "1", "--jobs", "2"]

    assert run.main(words) == 1
    printed = capsys.readouterr().out
    assert re.search(r"failed: LoRA, seed 0: .*lora", printed)
    assert "GOAT against linear probe" in printed
    assert "One seed cannot show" in printed
    page = (output / "report.html").read_text()
    assert "failed and left out: LoRA, seed 0" in page
    # Bars, two curves, samples, two confusions, router load: seven pictures, none twice.
    assert len(set(re.findall(r"data:image/png;base64[^\"]+", page))) == 7
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)  # the page is whole by itself
    for name in ("accuracy", "training_accuracy", "training_loss", "samples", "confusion_goat", "router_load_goat"):
        assert (output / "plots" / f"{name}.png").is_file()

    before = (output / "runs" / "signs" / "goat" / "seed0" / "results.json").stat().st_mtime_ns
    broken.unlink()
    assert run.main(words) == 0
    printed = capsys.readouterr().out
    assert "3 runs, 2 of them finished before" in printed
    assert (output / "runs" / "signs" / "goat" / "seed0" / "results.json").stat().st_mtime_ns == before
    table = (output / "table.md").read_text()
    paths = {method: {0: output / "runs" / "signs" / method / "seed0"} for method in ("linear_probe", "lora", "goat")}
    for runs in collect(paths):
        assert len(runs.pictures) == len(NEW) * SPLITS["test"]
        accuracy = json.loads((runs.runs[0].path / "results.json").read_text())["metrics"]["accuracy"]
        assert runs.accuracies == pytest.approx([accuracy])
        assert f"{100 * accuracy:.1f}" in table
    assert [row.values[0] for row in result_table(collect(paths)).rows] == ["linear probe", "LoRA", "GOAT"]
