"""One DreamBooth recipe, one trajectory: however the work is divided, and whether or not the run was killed.

float32 and dropout 0 (a dropout mask depends on the shape of a micro-batch). Losses agree to 1e-4 relative: sums of
float32 in another order. Weights agree to 2 % of their matrix's largest: AdamW divides small gradients by their own
size, so that of an entry whose gradient is nearly zero the rounding is what moves it. With class pictures, trained text
encoders and random crops, so that everything that is drawn by chance takes part; five pictures and steps of four, so
that a step takes pictures of two passes.
"""

from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.dreambooth.drawn import draw_subject
from tests.dreambooth.tiny import tiny_sdxl
from tests.end_to_end.commands import assert_resumed_exactly, kill_after_first_checkpoint, losses, results, run_command

pytestmark = pytest.mark.slow

STEPS, SIZE = 6, 16
RECIPE = (
    f"--class-word disc --data.resolution {SIZE} --data.crop random --data.flip true --data.variants 3 "
    "--adapter.method moslora --adapter.r 4 --adapter.dropout 0 --text_encoder.train true --text_encoder.r 2 "
    "--text_encoder.learning_rate 1e-3 --prior.weight 0.5 --prior.pictures 3 --prior.steps 2 --loss.min_snr_gamma 5 "
    f"--train.precision float32 --train.batch_size 4 --train.max_steps {STEPS} --train.learning_rate 5e-3 "
    "--train.log_every 1 --train.save_every 2 --train.trackers [] --seed 3"
).split()
VALIDATION = ["--validation.prompts", '["a {token} {class}"]', "--validation.steps", "2", "--validation.pictures", "2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of the recipe: the tiny model, and five drawn pictures."""
    folder = tmp_path_factory.mktemp("dreambooth")
    places = {
        "--model.name": tiny_sdxl(folder / "model"),
        "--subject": draw_subject(folder / "subject", count=5, side=24),
        "--data.cache_dir": folder / "cache",
    }
    return [*RECIPE, *VALIDATION, *(str(word) for place in places.items() for word in place)]


@pytest.fixture(scope="module")
def whole(recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process, never interrupted, and without pictures drawn on its way."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_command("dreambooth", "train", *recipe, "--output", str(run))
    return run


def weights(run: Path) -> dict[str, Tensor]:
    return {
        f"{part} {name}": tensor
        for part in ("unet", "text_encoder", "text_encoder_2")
        for name, tensor in load_file(run / "adapter" / part / "adapter_model.safetensors").items()
    }


def grid(run: Path, step: int) -> Image.Image:
    return Image.open(run / "validation" / f"step-{step:06d}.png")


def assert_same_trajectory(run: Path, whole: Path) -> None:
    assert list(losses(run)) == list(range(1, STEPS + 1))
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)
    found = weights(run)
    for name, tensor in weights(whole).items():
        assert (found[name] - tensor).abs().max() <= 2e-2 * tensor.abs().max(), name


def test_two_processes_accumulation_and_validation_do_not_change_the_trajectory(
    recipe: list[str], whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    divided = ["--train.gradient_accumulation_steps", "2", "--train.evaluate_every", "4"]
    run_command("dreambooth", "train", *recipe, *divided, "--output", str(run), processes=2)
    assert_same_trajectory(run, whole)
    assert results(run)["n"] == results(whole)["n"] == 5
    assert sorted(path.name for path in (run / "validation").iterdir()) == [
        f"step-{step:06d}.png" for step in (4, STEPS)
    ]
    assert sorted(path.name for path in (whole / "validation").iterdir()) == [f"step-{STEPS:06d}.png"]
    assert grid(run, 4).tobytes() != grid(run, STEPS).tobytes()
    assert grid(run, STEPS).size == grid(whole, STEPS).size


def test_killed_run_goes_on_exactly(recipe: list[str], whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    kill_after_first_checkpoint(run, "dreambooth", "train", *recipe, "--output", str(run))

    run_command("dreambooth", "train", *recipe, "--output", str(run), "--resume", "must")
    # One process again, so that not even rounding may differ.
    assert_resumed_exactly(run, whole, step=2)
    assert all((weights(run)[name] == tensor).all() for name, tensor in weights(whole).items())
    assert grid(run, STEPS).tobytes() == grid(whole, STEPS).tobytes()
