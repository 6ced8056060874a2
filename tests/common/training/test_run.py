"""The run directory: what is new, resumed, finished or refused."""

import dataclasses
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from common.recipe_keys import config_hash
from common.training import RunDirectory
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


def test_its_own_config_goes_on_with_a_run_from_any_folder_and_never_deletes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {**dataclasses.asdict(RECIPE), "output": "run", "resume": "never", "overwrite": True}
    run = RunDirectory.create("run", recipe, resume="never", overwrite=True)
    kept = yaml.safe_load(run.config.read_text())
    assert (kept["output"], kept["resume"], kept["overwrite"]) == (str(tmp_path / "run"), "auto", False)
    assert config_hash(kept) == config_hash(recipe)


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"a: [", b"[1, 2]"])
def test_a_damaged_recipe_is_named_and_the_run_is_left_alone(tmp_path: Path, content: bytes) -> None:
    run = RunDirectory.create(tmp_path, RECIPE, resume="auto")
    kept = save(run.checkpoints, 4)
    run.config.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        RunDirectory.create(tmp_path, RECIPE, resume="auto")
    assert kept.is_dir()


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[1]", b'{"task": "toy"}'])
def test_damaged_results_are_named(tmp_path: Path, content: bytes) -> None:
    RunDirectory.create(tmp_path, RECIPE, resume="auto").results.write_bytes(content)
    run = RunDirectory.create(tmp_path, RECIPE, resume="auto")
    with pytest.raises(UserError, match=r"results\.json is .*remove it"):
        run.read_results()


def test_a_damaged_description_of_the_machine_does_not_bar_a_resume(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, RECIPE, resume="auto")
    save(run.checkpoints, 4)
    run.environment.write_text("{")
    RunDirectory.create(tmp_path, RECIPE, resume="auto")
    assert json.loads(run.environment.read_text())["resumed"][0]["step"] == 4


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory.create(tmp_path, RECIPE, resume="auto")
    older, newer = save(run.checkpoints, 4), save(run.checkpoints, 8)
    (newer / "weights").write_bytes(b"y" * 100)
    assert RunDirectory.create(tmp_path, RECIPE, resume="auto").checkpoint == older
    assert f"passed over: {newer}; the run goes on from step-00000004" in capsys.readouterr().err


def test_two_processes_do_not_train_into_one_directory(tmp_path: Path) -> None:
    script = (
        "import sys; from common.training import RunDirectory; from tests.common.training.test_run import RECIPE\n"
        "RunDirectory.create(sys.argv[1], RECIPE, resume='auto'); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"open\n"
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is in use"):
            RunDirectory.create(tmp_path, RECIPE, resume="auto", overwrite=overwrite)
    other.kill()
    other.wait()
    assert RunDirectory.create(tmp_path, RECIPE, resume="auto").state == "new"
