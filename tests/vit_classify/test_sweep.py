"""The sweep's bookkeeping, with a training that only writes its results."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.training import RunDirectory
from vit_classify import sweep, sweep_table
from vit_classify.config import VitRecipe

ACCURACY = {"lora": 0.70, "moslora": 0.72, "goat": 0.75}


class FakeTraining:
    """Writes what `vit_classify.train.train` writes at its end, and remembers the recipes."""

    def __init__(self) -> None:
        self.recipes: list[VitRecipe] = []
        self.fails: Callable[[VitRecipe], Exception | None] = lambda recipe: None

    @property
    def cells(self) -> list[str]:
        return [f"{recipe.data.name}/{recipe.adapter.method}/{recipe.seed}" for recipe in self.recipes]

    def train(self, recipe: VitRecipe) -> dict[str, Any]:
        self.recipes.append(recipe)
        run = RunDirectory.create(str(recipe.output), recipe, resume=recipe.resume, overwrite=recipe.overwrite)
        error = self.fails(recipe)
        if error is not None:
            raise error
        run.metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
        (run.path / "data_report.json").write_text(json.dumps({"warnings": ["train has 3 pictures, not 3760"]}))
        metrics = {
            "accuracy": ACCURACY[recipe.adapter.method] + recipe.seed / 100,
            "zero_shot_accuracy": 0.44,
            "trainable_parameters": 1_327_104,
        }
        return run.write_results(task="vit_classify", metrics=metrics, n=10, seed=recipe.seed)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    fake = FakeTraining()
    monkeypatch.setattr(sweep.training, "train", fake.train)
    # A collection of all that torch has imported takes a second.
    monkeypatch.setattr(sweep, "_release_memory", lambda: None)
    # Drawing takes most of the time; one test draws.
    monkeypatch.setattr(sweep, "write_plots", lambda output, outcomes: None)
    return fake


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text("adapter:\n  method: goat\n  r: 8\n  num_experts: 4\n  rho: 5.0\ntrain:\n  max_steps: 2\n")
    return path


def words(base: Path, output: Path, *more: str, methods: str = "lora,goat", datasets: str = "dtd,gtsrb") -> list[str]:
    return [
        "--config", str(base), "--methods", methods, "--datasets", datasets, "--output", str(output), *more
    ]  # fmt: skip


def table(output: Path) -> dict[str, Any]:
    return json.loads((output / "table.json").read_text())


def test_every_method_runs_on_every_set_and_seed_in_its_own_directory(
    base: Path, tmp_path: Path, training: FakeTraining
) -> None:
    assert sweep.main(words(base, tmp_path / "out", "--seeds", "0,1")) == 0
    expected = [
        f"{data}/{method}/{seed}" for data in ("dtd", "gtsrb") for method in ("lora", "goat") for seed in (0, 1)
    ]
    assert training.cells == expected
    assert (tmp_path / "out" / "gtsrb" / "goat" / "seed1" / "results.json").is_file()


def test_a_method_gets_only_settings_that_have_an_effect_on_it(
    base: Path, tmp_path: Path, training: FakeTraining
) -> None:
    sweep.main(words(base, tmp_path / "out", datasets="dtd"))
    lora, goat = (recipe.adapter for recipe in training.recipes)
    assert (goat.num_experts, goat.rho) == (4, 5.0)
    assert (lora.num_experts, lora.rho) == (None, None)
    assert lora.r == goat.r == 8


def test_the_command_line_overrides_the_base_in_every_cell(base: Path, tmp_path: Path, training: FakeTraining) -> None:
    sweep.main(words(base, tmp_path / "out", "--train.max_steps", "7", "--data.source=pictures/{name}"))
    assert {recipe.train.max_steps for recipe in training.recipes} == {7}
    assert {recipe.data.source for recipe in training.recipes} == {"pictures/dtd", "pictures/gtsrb"}


def test_finished_cells_are_not_trained_again(base: Path, tmp_path: Path, training: FakeTraining) -> None:
    sweep.main(words(base, tmp_path / "out", methods="lora"))
    training.recipes.clear()
    assert sweep.main(words(base, tmp_path / "out", methods="lora,goat")) == 0
    assert training.cells == ["dtd/goat/0", "gtsrb/goat/0"]


def test_keys_that_change_no_result_do_not_count_as_a_change(
    base: Path, tmp_path: Path, training: FakeTraining
) -> None:
    sweep.main(words(base, tmp_path / "out"))
    training.recipes.clear()
    assert sweep.main(words(base, tmp_path / "out", "--data.num_workers", "1", "--train.log_every", "3")) == 0
    assert training.cells == []


def test_a_changed_recipe_is_refused_before_anything_runs(base: Path, tmp_path: Path, training: FakeTraining) -> None:
    sweep.main(words(base, tmp_path / "out", datasets="dtd"))
    training.recipes.clear()
    with pytest.raises(UserError, match=r"dtd/lora/seed0: train\.max_steps was 2, is 9") as error:
        sweep.main(words(base, tmp_path / "out", "--train.max_steps", "9"))
    assert "dtd/goat/seed0" in str(error.value)
    assert "another --output" in str(error.value)
    assert training.cells == []


@pytest.mark.parametrize("error", [UserError("data.source=x is no folder"), RuntimeError("CUDA out of memory")])
def test_a_failing_cell_is_named_and_the_others_still_run(
    base: Path, tmp_path: Path, training: FakeTraining, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    training.fails = lambda recipe: error if recipe.adapter.method == "lora" and recipe.data.name == "dtd" else None
    assert sweep.main(words(base, tmp_path / "out")) == 1
    assert len(training.cells) == 4
    assert f"failed: dtd/lora/seed0: {error}" in capsys.readouterr().out.replace("RuntimeError: ", "")
    states = {f"{cell['dataset']}/{cell['method']}": cell["status"] for cell in table(tmp_path / "out")["cells"]}
    assert states == {"dtd/lora": "failed", "dtd/goat": "finished", "gtsrb/lora": "finished", "gtsrb/goat": "finished"}
    assert str(error) in (tmp_path / "out" / "table.md").read_text().replace("\\", "")


def test_the_same_command_tries_failed_cells_again(base: Path, tmp_path: Path, training: FakeTraining) -> None:
    training.fails = lambda recipe: RuntimeError("broken") if recipe.adapter.method == "lora" else None
    sweep.main(words(base, tmp_path / "out", datasets="dtd"))
    training.recipes.clear()
    training.fails = lambda recipe: None
    assert sweep.main(words(base, tmp_path / "out", datasets="dtd")) == 0
    assert training.cells == ["dtd/lora/0"]


def test_a_cell_that_failed_before_it_trained_takes_the_mended_recipe(
    base: Path, tmp_path: Path, training: FakeTraining
) -> None:
    training.fails = lambda recipe: UserError("data.source=wrong is no folder") if "wrong" in str(recipe.data) else None
    given = words(base, tmp_path / "out", datasets="dtd")
    assert sweep.main([*given, "--data.source", "wrong"]) == 1
    training.recipes.clear()
    assert sweep.main([*given, "--data.source", "right"]) == 0
    assert training.cells == ["dtd/lora/0", "dtd/goat/0"]


def test_an_interrupted_sweep_leaves_the_table_of_what_is_done(
    base: Path, tmp_path: Path, training: FakeTraining
) -> None:
    training.fails = lambda recipe: KeyboardInterrupt() if recipe.data.name == "gtsrb" else None  # type: ignore[return-value]
    with pytest.raises(KeyboardInterrupt):
        sweep.main(words(base, tmp_path / "out"))
    states = [cell["status"] for cell in table(tmp_path / "out")["cells"]]
    assert states == ["finished", "finished", "not run", "not run"]
    assert "not run yet: gtsrb/lora/seed0" in (tmp_path / "out" / "table.md").read_text()


def test_with_several_processes_an_error_of_one_ends_the_sweep(
    base: Path, tmp_path: Path, training: FakeTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep.processes, "world_size", lambda: 2)
    training.fails = lambda recipe: RuntimeError("only here")
    with pytest.raises(RuntimeError, match="only here"):
        sweep.main(words(base, tmp_path / "out"))


def test_our_rows_stand_beside_the_published_ones(
    base: Path, tmp_path: Path, training: FakeTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.main(words(base, tmp_path / "out", "--seeds", "0,2"))
    printed = capsys.readouterr().out
    assert "published, [G] Table 1" in printed
    assert "81.49" in printed
    rows = {
        row["values"][0]: row["values"] for row in table(tmp_path / "out")["rows"] if row["group"].startswith("mea")
    }
    column = table(tmp_path / "out")["columns"].index("DTD")
    # seeds 0 and 2 give 75 % and 77 %
    assert rows["GOAT"][column]["mean"] == pytest.approx(76.0)
    assert rows["GOAT"][column]["deviation"] == pytest.approx(2**0.5)
    assert rows["before training"][column]["mean"] == pytest.approx(44.0)
    assert rows["GOAT"][table(tmp_path / "out")["columns"].index("average of 7")] is None
    # 1 327 104 of 88 715 520 is 1.4959 %, which the paper prints as 1.49
    assert rows["GOAT"][table(tmp_path / "out")["columns"].index("params %")] == 1.49


def test_warnings_about_the_data_stand_under_the_table(
    base: Path, tmp_path: Path, training: FakeTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.main(words(base, tmp_path / "out"))
    assert "note: dtd: train has 3 pictures, not 3760" in capsys.readouterr().out
    assert "dtd: train has 3 pictures" in (tmp_path / "out" / "table.md").read_text()


def test_pictures_of_the_sweep_are_written(
    base: Path, tmp_path: Path, training: FakeTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "write_plots", sweep_table.write_plots)
    sweep.main(words(base, tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    assert names == {"accuracy.png", "accuracy.svg", "loss_dtd.png", "loss_gtsrb.png"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"methods": "lora,gaot"}, "'gaot', which is no method; did you mean goat"),
        ({"methods": " , "}, "names nothing"),
        ({"methods": "linear_probe"}, r"set model\.head=linear"),
    ],
)
def test_impossible_sweeps_are_refused_before_anything_runs(
    base: Path, tmp_path: Path, training: FakeTraining, more: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sweep.main(words(base, tmp_path / "out", **more))
    assert training.cells == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words_more", "message"),
    [
        (["--seeds", "0,x"], "--seeds=0,x must be whole numbers"),
        (["--data.name", "dtd"], r"--data\.name is set by the sweep"),
        (["--adapter.method=lora"], r"--adapter\.method is set by the sweep"),
        (["--data.source", "pictures"], r"one place for 2 sets; put \{name\}"),
        (["--adapter.ranc", "4"], r"unknown option --adapter\.ranc"),
        (["--adapter.r", "6"], r"goat: adapter\.r=6 is not a multiple"),
    ],
)
def test_impossible_options_are_refused(
    base: Path, tmp_path: Path, training: FakeTraining, words_more: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sweep.main(words(base, tmp_path / "out", *words_more))
    assert training.cells == []


def test_a_broken_result_is_named(base: Path, tmp_path: Path, training: FakeTraining) -> None:
    sweep.main(words(base, tmp_path / "out", datasets="dtd"))
    results = tmp_path / "out" / "dtd" / "lora" / "seed0" / "results.json"
    results.write_text(results.read_text()[:20])
    with pytest.raises(UserError, match=r"lora/seed0/results\.json is broken at line"):
        sweep.main(words(base, tmp_path / "out", datasets="dtd"))
