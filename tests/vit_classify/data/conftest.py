"""Small picture folders, drawn from a fixed seed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_classify.config import DataConfig
from vit_classify.data import build, store
from vit_classify.data.build import Pass
from vit_classify.data.sources import open_sources

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


@pytest.fixture
def pictures(make_folder: MakeFolder) -> Path:
    """22 pictures of two classes: five whole chunks of `make_pass` and half a one."""
    return make_folder({"a": 12, "b": 10})


@pytest.fixture
def make_pass(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pass]:
    """`make_pass(pictures, cache_root)`: the pass over the training pictures, in chunks of four."""
    for module in (build, store):
        monkeypatch.setattr(module, "CHUNK", 4)

    def make(pictures: Path, root: Path, **changes: Any) -> Pass:
        settings = {"store_size": 24, "pixels": True, "strict": False, "num_workers": 0, **changes}
        return Pass(open_sources("mine", str(pictures), None).train, name="mine-train", root=root, **settings)

    return make


@pytest.fixture
def contents() -> Callable[[Pass], list[bytes]]:
    """Opens a pass and gives the bytes of its readable pictures."""

    def read(task: Pass) -> list[bytes]:
        opened, index = task.open()
        return [opened.image(int(row)).tobytes() for row in index.readable()]

    return read


# A process of its own that runs the pass of `make_pass`, with a pause at each picture.
BUILDER = """
import sys, time
from pathlib import Path
from vit_classify.data import build, store
from vit_classify.data.sources import open_sources
build.CHUNK = store.CHUNK = 4
original = build.load_picture
def slowly(*arguments):
    time.sleep(float(sys.argv[3]))
    return original(*arguments)
build.load_picture = slowly
source = open_sources("mine", sys.argv[1], None).train
task = build.Pass(source, "mine-train", Path(sys.argv[2]), 24, pixels=True, strict=False, num_workers=0)
print("ready", flush=True)
task.open()
print("done", flush=True)
"""


@pytest.fixture
def builder() -> str:
    """Python code that runs the pass; arguments: pictures, cache root, seconds a picture."""
    return BUILDER
