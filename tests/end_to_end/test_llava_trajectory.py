"""One LLaVA recipe, one trajectory: however the work is divided, and whether or not the run was killed.

float32 and dropout 0 (a dropout mask depends on the shape of a micro-batch). Losses agree to 1e-4 relative: sums of
float32 in another order, and AdamW divides small gradients by their own size. A third of the conversations have no
picture and share batches, so that in some shares neither tower nor projector gets a gradient of its own; the last batch
of an epoch has one conversation, so that whole processes have nothing to do in it.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from common.reporting.samples import read_samples
from llava.demo.draw import write_sets
from tests.end_to_end.commands import assert_resumed_exactly, kill_after_first_checkpoint, losses, results, run_command
from tests.llava.tiny import tiny_llava

pytestmark = pytest.mark.slow

SAMPLES, STEPS = 25, 12
RECIPE = (
    "--data.template llama3 --data.num_workers 0 --adapter.method moslora --adapter.r 4 --adapter.dropout 0 "
    f"--tower.r 2 --train.precision float32 --train.batch_size 8 --train.max_steps {STEPS} --train.warmup_steps 2 "
    "--train.learning_rate 5e-3 --train.log_every 1 --train.save_every 2 --train.evaluate_every 5 "
    "--train.trackers [] --seed 3"
).split()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of the recipe: the tiny model, and drawn questions of which every third has lost its picture."""
    folder = tmp_path_factory.mktemp("llava")
    write_sets(folder, train=SAMPLES, test=4, seed=5)
    samples = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    for sample in samples[::3]:
        del sample["image"]
        sample["conversations"][0]["value"] = "How are you?"
    (folder / "train.json").write_text(json.dumps(samples), encoding="utf-8")
    places = {
        "--model.name": tiny_llava(folder / "model").whole,
        "--data.path": folder / "train.json",
        "--data.validation_path": folder / "test.json",
        "--data.cache_dir": folder / "cache",
    }
    return [*RECIPE, *(str(word) for place in places.items() for word in place)]


@pytest.fixture(scope="module")
def whole(recipe: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process, never interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_command("llava", "train", *recipe, "--output", str(run))
    return run


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def assert_same_trajectory(run: Path, whole: Path) -> None:
    assert list(losses(run)) == list(range(1, STEPS + 1))
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)
    for name, tensor in weights(whole).items():
        assert (weights(run)[name] - tensor).abs().max() <= 1e-3 * tensor.abs().max(), name
    found, expected = results(run)["metrics"], results(whole)["metrics"]
    assert found["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-4)
    for count in ("total_tokens", "total_supervised_tokens"):
        assert found[count] == expected[count]


def assert_same_samples(run: Path, whole: Path) -> None:
    """The same questions, and but for one, which rounding may tip, the same answers."""
    found, expected = (read_samples(each) for each in (run, whole))
    assert found is not None
    assert expected is not None
    assert [item.question for item in found.items] == [item.question for item in expected.items]
    pairs = zip(found.items, expected.items, strict=True)
    assert sum(one.answer == other.answer for one, other in pairs) >= len(expected.items) - 1


def test_training_lowers_the_loss_and_trains_every_part(whole: Path) -> None:
    course = losses(whole)
    assert sum(course[step] for step in range(STEPS - 2, STEPS + 1)) < sum(course[step] for step in range(1, 4))
    for part in ("language_model", "vision_tower", "multi_modal_projector"):
        assert any(part in name for name in weights(whole)), part


def test_accumulation_does_not_change_the_trajectory(recipe: list[str], whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_command("llava", "train", *recipe, "--train.gradient_accumulation_steps", "4", "--output", str(run))
    assert_same_trajectory(run, whole)


def test_two_processes_have_the_trajectory_of_one(recipe: list[str], whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_command("llava", "train", *recipe, "--output", str(run), processes=2)
    assert_same_trajectory(run, whole)
    assert_same_samples(run, whole)
    assert results(run)["n"] == results(whole)["n"] == SAMPLES


def test_sharded_weights_do_not_change_the_trajectory(recipe: list[str], whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--model.shard", "true", "--train.gradient_checkpointing", "true", "--output", str(run)]
    done = run_command("llava", "train", *recipe, *words, processes=2)
    assert "frozen parameters among 2 processes (FSDP2)" in done.stderr
    assert_same_trajectory(run, whole)
    assert_same_samples(run, whole)


def test_deepspeed_by_an_accelerate_configuration_does_not_change_the_trajectory(
    recipe: list[str], whole: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    settings = {
        "zero_optimization": {"stage": 2},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }
    (tmp_path / "zero2.json").write_text(json.dumps(settings), encoding="utf-8")
    environment = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "zero2.json"),
        **({} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}),
    }
    run = tmp_path / "run"
    run_command("llava", "train", *recipe, "--output", str(run), processes=2, environment=environment)
    assert_same_trajectory(run, whole)


def test_killed_run_goes_on_exactly(recipe: list[str], whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    kill_after_first_checkpoint(run, "llava", "train", *recipe, "--output", str(run))

    run_command("llava", "train", *recipe, "--output", str(run), "--resume", "must")
    # One process again, so that not even rounding may differ.
    assert_resumed_exactly(run, whole, step=2)
    assert all((weights(run)[name] == tensor).all() for name, tensor in weights(whole).items())
