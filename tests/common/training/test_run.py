"""The run directory: what is new, resumed, finished or refused."""

import dataclasses
import json
import platform
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from common.training import RunDirectory, config_hash
from tests.common.test_files import save
from tests.common.training.toy import ToyRecipe, train_config

RECIPE = ToyRecipe(train_config())


def changed(**train: object) -> ToyRecipe:
    return ToyRecipe(train_config(**train))


def test_a_new_run_describes_itself_without_naming_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hush-hush-secret")
    run = RunDirectory.create(tmp_path / "a" / "run", RECIPE, resume="auto")
    assert run.state == "new"
    assert yaml.safe_load(run.config.read_text())["train"]["batch_size"] == 8
    environment = json.loads(run.environment.read_text())
    assert environment["packages"]["torch"]
    assert environment["world_size"] == 1
    text = run.environment.read_text()
    assert platform.node() not in text
    assert "hush-hush-secret" not in text


def test_resume_and_overwrite_decide_what_an_old_run_means(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(UserError, match="resume=must"):
        RunDirectory.create(path, RECIPE, resume="must")
    RunDirectory.create(path, RECIPE, resume="never")
    with pytest.raises(UserError, match="no whole checkpoint"):
        RunDirectory.create(path, RECIPE, resume="must")
    assert RunDirectory.create(path, RECIPE, resume="auto").state == "new"
    kept = save(path / "checkpoints", 40)
    with pytest.raises(UserError, match=r"holds a run already.*overwrite=true"):
        RunDirectory.create(path, RECIPE, resume="never")
    for resume in ("auto", "must"):
        run = RunDirectory.create(path, RECIPE, resume=resume)  # type: ignore[arg-type]
        assert (run.state, run.checkpoint) == ("resumed", kept)
    assert [entry["step"] for entry in json.loads(run.environment.read_text())["resumed"]] == [40, 40]
    run.write_results(task="toy", metrics={"accuracy": 0.5}, n=10, seed=3)
    again = RunDirectory.create(path, RECIPE, resume="auto")
    assert again.state == "finished"
    assert again.read_results()["config_hash"] == config_hash(RECIPE)
    fresh = RunDirectory.create(path, changed(epochs=9), resume="never", overwrite=True)
    assert fresh.state == "new"
    assert not kept.exists()
    assert not fresh.results.exists()


def test_a_start_that_trained_nothing_does_not_bar_the_corrected_one(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, changed(epochs=9), resume="auto")
    run = RunDirectory.create(tmp_path, RECIPE, resume="never")
    assert run.state == "new"
    assert yaml.safe_load(run.config.read_text())["train"]["epochs"] == 3
    run.metrics.write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="holds a run of another recipe"):
        RunDirectory.create(tmp_path, changed(epochs=9), resume="auto")


def test_another_recipe_is_refused_and_the_keys_are_named(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, RECIPE, resume="auto").write_results(task="toy", metrics={}, n=1, seed=3)
    with pytest.raises(UserError, match=r"train.epochs: 3 in the run, 4 now\n.*train.learning_rate: 0.02 in"):
        RunDirectory.create(tmp_path, changed(epochs=4, learning_rate=0.1), resume="auto")


def test_what_does_not_change_the_result_does_not_change_the_hash(tmp_path: Path) -> None:
    neutral = changed(log_every=1, save_every=7, trackers=["tensorboard"], gradient_accumulation_steps=2)
    neutral = dataclasses.replace(neutral, output="elsewhere", resume="must")
    assert config_hash(neutral) == config_hash(RECIPE)
    assert config_hash(neutral) == config_hash(dataclasses.asdict(neutral))
    assert config_hash(changed(learning_rate=0.021)) != config_hash(RECIPE)
    RunDirectory.create(tmp_path, RECIPE, resume="auto")
    assert RunDirectory.create(tmp_path, neutral, resume="auto").state == "new"


def test_a_folder_that_is_no_run_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is no run"):
            RunDirectory.create(tmp_path, RECIPE, resume="auto", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        RunDirectory.create(tmp_path / "thesis.txt", RECIPE, resume="auto")


def test_a_place_that_cannot_be_written_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunDirectory.create(tmp_path / "file" / "run", RECIPE, resume="auto")
