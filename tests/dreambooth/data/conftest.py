"""The tiny SDXL, and drawn pictures in every condition that pictures are found in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.config import DataConfig, DreamboothRecipe, ModelConfig
from dreambooth.model import SdxlBase, load_model

Recipe = Callable[..., DreamboothRecipe]


@pytest.fixture(scope="session")
def _loaded(tiny_model: Path) -> SdxlBase:
    return load_model(ModelConfig(name=str(tiny_model)))


@pytest.fixture
def base(_loaded: SdxlBase) -> SdxlBase:
    """The tiny model; its parts may be released and its facts changed, its weights may not."""
    return replace(_loaded)


def drawn(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture that no flip or rotation leaves as it is: red grows to the right, green downwards."""
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    blue = (seed * 37) % 256
    pixels = np.stack(np.broadcast_arrays(across[None, :], down[:, None], np.float64(blue)), axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five sound pictures, wide, high and square."""
    place = tmp_path / "robot"
    place.mkdir()
    for i, size in enumerate([(40, 24), (24, 40), (32, 32), (48, 24), (20, 20)]):
        drawn(*size, seed=i).save(place / f"{i}.png")
    return place


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Recipe:
    """A recipe on `folder` with a cache of its own; keywords are of the data section, or whole sections."""

    def make(**changes: object) -> DreamboothRecipe:
        sections = {name: changes.pop(name) for name in ("prior", "text_encoder", "train", "seed") if name in changes}
        data = {"path": str(folder), "class_word": "robot", "resolution": 16, "cache_dir": str(tmp_path / "cache")}
        return DreamboothRecipe(data=DataConfig(**(data | changes)), **sections)  # type: ignore[arg-type]

    return make
