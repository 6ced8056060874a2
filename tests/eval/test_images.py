"""`mosgoat eval images` on a small run that is made here: random weights, drawn pictures, real files."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image

from common.config import AdapterConfig, TrainConfig
from common.errors import UserError
from common.training import RunDirectory
from eval import images
from vit_classify.checkpoint import write_local
from vit_classify.config import DataConfig, ModelConfig, VitRecipe
from vit_classify.data import open_data
from vit_classify.model import load_model, prepare_training, save_run

ROOT = Path(__file__).resolve().parent.parent.parent
TINY: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30)}


def draw(folder: Path, classes: dict[str, tuple[int, int, int]], train: int = 12, test: int = 5) -> Path:
    """A folder per class with noisy pictures of one colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name, colour in classes.items():
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(colour, 20, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index:02}.png")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("pictures") / "colours", COLOURS)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A run as `mosgoat vit train` leaves it, adapter untrained; not to be changed by a test."""
    root = tmp_path_factory.mktemp("trained")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = write_local(open_clip.CLIP(**TINY).state_dict(), TINY, root / "base")
    recipe = VitRecipe(
        model=ModelConfig(name=f"local-dir:{base}"),
        data=DataConfig(name="colours", source=str(pictures), cache_dir=str(root / "cache"), num_workers=0),
        adapter=AdapterConfig(method="lora", r=2),
        train=TrainConfig(precision="float32"),
        output=str(root / "run"),
    )
    run = RunDirectory.create(root / "run", recipe, resume="never")
    data = open_data(recipe.data)
    classifier = load_model(recipe.model, data.class_names, data.templates)
    prepare_training(classifier, recipe.adapter)
    save_run(classifier, run.path)
    run.write_results(
        task="vit_classify", metrics={"accuracy": 0.0}, n=15, seed=0, dataset="colours", method="lora", head="zero_shot"
    )
    return run.path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that the test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "eval_images.json").read_text())


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "eval_images_predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_test_picture_is_measured_once_and_named(run: Path) -> None:
    assert images.main(["--run", str(run)]) == 0
    found = results(run)
    assert (found["n"], found["split"], found["task"], found["method"]) == (15, "test", "vit_classify", "lora")
    lines = rows(run)
    assert len({line["name"] for line in lines}) == 15
    assert [line["label"] for line in lines] == sorted(["blue", "green", "red"] * 5)


def test_accuracy_is_the_share_of_right_lines_in_the_predictions(run: Path) -> None:
    images.main(["--run", str(run)])
    lines = rows(run)
    right = [line["label"] == line["predicted"] for line in lines]
    assert results(run)["metrics"]["accuracy"] == pytest.approx(sum(right) / len(right))
    for name, accuracy in results(run)["metrics"]["per_class_accuracy"].items():
        mine = [hit for hit, line in zip(right, lines, strict=True) if line["label"] == name]
        assert accuracy == pytest.approx(sum(mine) / len(mine))


def test_confidence_is_a_probability_of_the_predicted_class(run: Path) -> None:
    images.main(["--run", str(run)])
    confidences = [float(line["confidence"]) for line in rows(run)]
    # Three classes: the largest of three probabilities is at least a third; 1e-4: printed with four decimals.
    assert all(1 / 3 - 1e-4 <= confidence <= 1 for confidence in confidences)


def test_confusion_matrix_is_drawn(run: Path) -> None:
    images.main(["--run", str(run)])
    with Image.open(run / "plots" / "eval_images_confusion.png") as picture:
        assert picture.format == "PNG"


def test_result_and_the_worst_classes_are_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images.main(["--run", str(run)])
    printed = capsys.readouterr().out
    accuracy = results(run)["metrics"]["accuracy"]
    assert f"top-1 accuracy {accuracy:.2%} of 15 pictures" in printed
    assert "worst classes" in printed


def test_batch_size_does_not_change_the_result(run: Path, tmp_path: Path) -> None:
    for size in ("1", "7", "64"):
        images.main(["--run", str(run), "--batch-size", size, "--output", str(tmp_path / size)])
    # float32 sums differ by rounding between batch sizes; no picture here is near a tie.
    assert rows(tmp_path / "1") == rows(tmp_path / "7") == rows(tmp_path / "64")


def test_the_trainings_own_files_are_left_alone(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    images.main(["--run", str(run)])
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_validation_split_is_measured_on_demand(run: Path) -> None:
    images.main(["--run", str(run), "--split", "validation"])
    assert results(run)["split"] == "validation"
    assert results(run)["n"] == 3  # a tenth of 36, rounded down


def test_measuring_the_same_again_is_no_overwriting(run: Path) -> None:
    images.main(["--run", str(run)])
    assert images.main(["--run", str(run), "--batch-size", "4"]) == 0


def test_another_measurement_is_not_overwritten_without_being_told_to(run: Path) -> None:
    images.main(["--run", str(run)])
    with pytest.raises(UserError, match=r"another measurement \(split: test there, validation now\)"):
        images.main(["--run", str(run), "--split", "validation"])
    assert results(run)["split"] == "test"
    assert images.main(["--run", str(run), "--split", "validation", "--overwrite"]) == 0
    assert results(run)["split"] == "validation"


def test_other_pictures_of_the_same_classes_are_measured(run: Path, tmp_path: Path) -> None:
    other = draw(tmp_path / "other", COLOURS, test=2)
    images.main(["--run", str(run), "--data.source", str(other), "--output", str(tmp_path / "out")])
    assert results(tmp_path / "out")["n"] == 6
    assert results(tmp_path / "out")["source"] == str(other)
    assert not (run / "eval_images.json").exists()


def test_unreadable_pictures_are_counted_and_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = draw(tmp_path / "other", COLOURS)
    (other / "test" / "red" / "00.png").write_bytes(b"")
    images.main(["--run", str(run), "--data.source", str(other)])
    found = results(run)
    assert (found["n"], found["skipped"]) == (14, 1)
    assert "00.png" in found["skipped_pictures"][0][0]
    assert "1 unreadable" in capsys.readouterr().out


def test_other_classes_than_the_heads_are_named(run: Path, tmp_path: Path) -> None:
    other = draw(tmp_path / "other", {**COLOURS, "violet": (150, 40, 200)})
    shutil.rmtree(other / "train" / "red")
    shutil.rmtree(other / "test" / "red")
    with pytest.raises(UserError, match=r"1 of the run are not there: red; 1 are unknown to the run: violet"):
        images.main(["--run", str(run), "--data.source", str(other)])


def test_a_run_of_another_pipeline_is_refused(run: Path) -> None:
    content = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**content, "task": "llava"}))
    with pytest.raises(UserError, match="is a run of llava, not of vit_classify"):
        images.main(["--run", str(run)])


def test_an_unfinished_run_is_refused(run: Path) -> None:
    (run / "results.json").unlink()
    with pytest.raises(UserError, match="has not finished"):
        images.main(["--run", str(run)])


def test_a_run_without_its_adapter_is_refused(run: Path) -> None:
    shutil.rmtree(run / "adapter")
    with pytest.raises(UserError, match="adapter"):
        images.main(["--run", str(run)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adapter.r", "4"], r"unknown option --adapter\.r.*those of the run"),
        (["--data.sorce", "x"], r"unknown option --data\.sorce; did you mean data\.source"),
        (["--batch-size", "0"], "--batch-size=0 must be from 1"),
        (["--data.source", "no/such/folder"], "no/such/folder"),
    ],
)
def test_options_without_effect_or_sense_are_refused(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        images.main(["--run", str(run), *words])


def test_a_set_without_validation_pictures_says_so(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_validation(*args: Any, **kwargs: Any) -> Any:
        data = open_data(*args, **kwargs)
        data.validation.rows = data.validation.rows[:0]
        return data

    monkeypatch.setattr(images, "open_data", without_validation)
    with pytest.raises(UserError, match="no validation pictures"):
        images.main(["--run", str(run), "--split", "validation"])


def test_the_config_of_the_run_is_all_that_is_needed(run: Path, tmp_path: Path) -> None:
    moved = run.rename(tmp_path / "elsewhere")
    assert yaml.safe_load((moved / "config.yaml").read_text())["data"]["name"] == "colours"
    assert images.main(["--run", str(moved)]) == 0


@pytest.mark.slow
def test_two_processes_measure_the_same_as_one(run: Path, tmp_path: Path) -> None:
    images.main(["--run", str(run), "--output", str(tmp_path / "one")])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "--", "common.cli", "eval", "images", "--run", str(run), "--output", str(tmp_path / "two")]
    done = subprocess.run([*launcher, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert rows(tmp_path / "two") == rows(tmp_path / "one")
    assert done.stdout.count("top-1 accuracy") == 1  # only the main process prints
