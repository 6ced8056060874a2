"""Small picture folders, drawn from a fixed seed."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_classify.config import DataConfig

MakeFolder = Callable[..., Path]


def smooth_picture(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Random colours enlarged from 8 pixels, so that JPEG and resampling behave as on photographs."""
    small = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """`make_folder({"cat": 5, "dog": 5}, test={...}, size=(40, 60))`: class folders of PNG pictures."""

    def make(
        train: Mapping[str, int],
        test: Mapping[str, int] | None = None,
        size: tuple[int, int] = (40, 60),
        root: Path | None = None,
        ending: str = ".png",
    ) -> Path:
        rng = np.random.default_rng(0)
        root = root or tmp_path / "pictures"
        for split, classes in (("train", train), ("test", test or dict.fromkeys(train, 2))):
            for name, count in classes.items():
                (root / split / name).mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    smooth_picture(rng, *size).save(root / split / name / f"{i:03}{ending}")
        return root

    return make


@pytest.fixture
def config_of(tmp_path: Path) -> Callable[..., DataConfig]:
    """A data section with a cache of its own and no worker processes."""

    def config(source: Path, **changes: object) -> DataConfig:
        settings = {"name": "mine", "cache_dir": str(tmp_path / "cache"), "num_workers": 0, **changes}
        return DataConfig(source=str(source), **settings)  # type: ignore[arg-type]

    return config
