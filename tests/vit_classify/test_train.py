"""What a training refuses before it trains: pictures that have changed under a run."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from common.training import RunDirectory
from common.training.data_report import keep_report
from vit_classify.config import DataConfig, VitRecipe
from vit_classify.data import open_data


@pytest.fixture
def recipe(tmp_path: Path) -> VitRecipe:
    """A folder of two classes with eleven training pictures each."""
    for split in ("train", "test"):
        for shade, name in enumerate(("a", "b")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(11):
                Image.new("RGB", (8, 8), (shade * 99, i, i)).save(folder / f"{i:02}.png")
    data = DataConfig("mine", str(tmp_path / "pictures"), cache_dir=str(tmp_path / "cache"), num_workers=0)
    return VitRecipe(data=data)


def remove(pictures: Path) -> None:
    (pictures / "train" / "a" / "03.png").unlink()


def replace(pictures: Path) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(pictures / "train" / "a" / "03.png")


def add_class(pictures: Path) -> None:
    for split in ("train", "test"):
        (pictures / split / "c").mkdir()
        Image.new("RGB", (8, 8)).save(pictures / split / "c" / "0.png")


@pytest.mark.parametrize("change", [remove, replace, add_class])
def test_a_run_does_not_go_on_with_other_pictures(
    tmp_path: Path, recipe: VitRecipe, change: Callable[[Path], None]
) -> None:
    run = RunDirectory.create(tmp_path / "run", recipe, resume="auto")
    keep_report(open_data(recipe.data).report, run, "pictures")
    resumed = dataclasses.replace(run, state="resumed")
    pictures = tmp_path / "pictures"
    for file in pictures.rglob("*.png"):
        file.touch()  # copied to another disk: the same pictures
    keep_report(open_data(recipe.data).report, resumed, "pictures")
    change(pictures)
    report = (run.path / "data_report.json").read_text()
    with pytest.raises(UserError, match="the pictures have changed since"):
        keep_report(open_data(recipe.data).report, resumed, "pictures")
    assert (run.path / "data_report.json").read_text() == report
    keep_report(open_data(recipe.data).report, run, "pictures")  # a new run takes what is there
    assert json.loads((run.path / "data_report.json").read_text())["content"]
