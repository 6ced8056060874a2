"""One recipe, one trajectory: however the work is divided, and whether or not the run was killed.

float32 and dropout 0 (a dropout mask depends on the shape of a micro-batch). Losses agree to 2e-5 relative:
sums of float32 in another order.
"""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.end_to_end.commands import assert_resumed_exactly, kill_after_first_checkpoint, losses, results, run_command

pytestmark = pytest.mark.slow

RECIPE = (
    "--model.name builtin:signs-vit --model.head linear --data.name signs --data.source builtin:signs "
    "--adapter.method moslora --adapter.dropout 0 --train.precision float32 --train.batch_size 8 "
    "--train.max_steps 24 --train.warmup_steps 2 --train.learning_rate 3e-3 --train.log_every 1 --train.save_every 4 "
    "--data.num_workers 1 --seed 3"
).split()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process, never interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_command("vit", "train", *RECIPE, "--output", str(run))
    return run


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def assert_same_trajectory(run: Path, whole: Path) -> None:
    assert losses(run) == pytest.approx(losses(whole), rel=2e-5)
    assert list(losses(run)) == list(range(1, 25))
    for name, tensor in weights(whole).items():
        assert (weights(run)[name] - tensor).abs().max() <= 1e-4 * tensor.abs().max(), name
    assert results(run)["metrics"]["accuracy"] == pytest.approx(results(whole)["metrics"]["accuracy"], abs=0.01)


def test_training_lowers_the_loss(whole: Path) -> None:
    course = losses(whole)
    assert sum(course[step] for step in range(20, 25)) < sum(course[step] for step in range(1, 6))


def test_accumulation_does_not_change_the_trajectory(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_command("vit", "train", *RECIPE, "--train.gradient_accumulation_steps", "2", "--output", str(run))
    assert_same_trajectory(run, whole)


def test_two_processes_have_the_trajectory_of_one(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_command("vit", "train", *RECIPE, "--output", str(run), processes=2)
    assert_same_trajectory(run, whole)
    assert results(run)["n"] == results(whole)["n"]


def test_killed_run_goes_on_exactly(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    kill_after_first_checkpoint(run, "vit", "train", *RECIPE, "--output", str(run))

    run_command("vit", "train", *RECIPE, "--output", str(run), "--resume", "must")
    # One process again, so that not even rounding may differ.
    assert_resumed_exactly(run, whole, step=4)
    assert all((weights(run)[name] == tensor).all() for name, tensor in weights(whole).items())


def test_finished_run_is_reported_not_trained_again(whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    done = run_command("vit", "train", *RECIPE, "--output", str(whole))
    assert "is finished" in done.stderr
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_other_recipe_does_not_touch_the_run(whole: Path) -> None:
    done = run_command("vit", "train", *RECIPE, "--adapter.r", "4", "--output", str(whole), status=2)
    assert "adapter.r: 8 in the run, 4 now" in done.stderr
    assert "Traceback" not in done.stderr
