"""Changing one word of a recipe changes the method: each trains, is saved, and is measured again from its folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from common import recipes
from common.config import Method
from eval.images import main as evaluate
from vit_classify.config import VitRecipe, recipe_problems
from vit_classify.train import main as train

TINY = Path(__file__).resolve().parents[2] / "vit_classify" / "recipes" / "tiny.yaml"
# One of each implementation; goat, moslora, lora and full are trained in other tests.
FAMILIES = ("dora", "adalora", "neat", "kasa", "lora_dash", "full_moe")


@pytest.mark.parametrize("method", get_args(Method))
def test_the_tiny_recipe_is_sound_with_any_method_in_the_place_of_its_own(method: Method) -> None:
    recipe = recipes.load(TINY, VitRecipe, problems=recipe_problems)
    assert recipe_problems(replace(recipe, adapter=replace(recipe.adapter, method=method))) == []


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six pictures each."""
    folder = tmp_path_factory.mktemp("pictures")
    for split in ("train", "test"):
        for shade, name in enumerate(("dark", "light")):
            (folder / split / name).mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (32, 32), (shade * 150, 9 * i, 60 + i)).save(folder / split / name / f"{i}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", FAMILIES)
def test_a_method_trains_is_saved_and_measured_again_alike(
    method: str, pictures: Path, tiny_base: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = {
        "model.name": f"local-dir:{tiny_base}",
        "model.head": "linear",
        "adapter.method": method,
        "output": run,
        "data.name": "shades",
        "data.source": pictures,
        "data.cache_dir": pictures / "cache",
        "data.num_workers": 0,
        "train.max_steps": 4,
        "train.batch_size": 4,
        "train.warmup_steps": 1,
        "train.learning_rate": 0.01,
        "train.precision": "float32",
        "train.gradient_checkpointing": True,
        "train.trackers": "[]",
    }
    assert train([word for key, value in settings.items() for word in (f"--{key}", str(value))]) == 0
    trained = json.loads((run / "results.json").read_text())["metrics"]
    assert trained["trainable_parameters"] > 0
    assert evaluate(["--run", str(run)]) == 0
    measured = json.loads((run / "eval_images.json").read_text())["metrics"]
    assert measured["accuracy"] == trained["accuracy"]
    before, after = (predicted(run / f"{prefix}predictions.csv") for prefix in ("", "eval_images_"))
    assert [row[:-1] for row in before] == [row[:-1] for row in after]
    # AdaLoRA is saved without the ranks that were taken away, so that its sums have other roundings
    assert [row[-1] for row in before] == pytest.approx([row[-1] for row in after], abs=1e-4)


def predicted(file: Path) -> list[tuple[str, str, str, float]]:
    """Picture, label, prediction and confidence of every row."""
    rows = [line.split(",") for line in file.read_text().splitlines()[1:]]
    return [(picture, label, found, float(confidence)) for picture, label, found, confidence, *_ in rows]
