"""Small files of conversations with pictures, drawn from a fixed seed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llava.config import DataConfig

SIZE = 28
SOURCES = ("coco/train2017", "gqa/images", "ocr_vqa/images")


def picture(seed: int, height: int = 20, width: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def conversation(i: int, image: str | None, rounds: int = 1) -> dict[str, Any]:
    """Row i with a question and an answer whose lengths depend on i."""
    turns = []
    for k in range(rounds):
        mark = "<image>\n" if image is not None and k == 0 else ""
        turns.append({"from": "human", "value": f"{mark}How many are there? " + "Say. " * (i % 5)})
        turns.append({"from": "gpt", "value": f"There are {i} of them." + " Yes." * (i % 7)})
    return {"id": f"row{i}", "conversations": turns, **({} if image is None else {"image": image})}


class Base:
    """The part of a loaded model that samples need."""

    image_processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )


class Folder:
    """A file of conversations, its pictures, and a cache of its own."""

    def __init__(self, root: Path, rows: int = 24) -> None:
        self.root, self.images, self.path = root, root / "images", root / "rows.json"
        self.rows: list[Any] = []
        for i in range(rows):
            name = None if i % 4 == 3 else f"{SOURCES[i % 3]}/{i:03}.jpg"
            if name is not None:
                (self.images / name).parent.mkdir(parents=True, exist_ok=True)
                picture(i).save(self.images / name)
            self.rows.append(conversation(i, name, 1 + i % 2))
        self.write()

    def write(self) -> None:
        self.path.write_text(json.dumps(self.rows, indent=1))

    def image(self, i: int) -> Path:
        return self.images / self.rows[i]["image"]

    def config(self, **changes: Any) -> DataConfig:
        settings = {"path": str(self.path), "image_root": str(self.images), "cache_dir": str(self.root / "cache")}
        return DataConfig(**{**settings, "template": "llama3", **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """24 conversations: 18 with a picture from three sources, 6 of text alone."""
    return Folder(tmp_path)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Folder]:
    return lambda name, rows: Folder(tmp_path / name, rows)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # Worker processes cost a second each; the tests that are about them ask for some.
    monkeypatch.setattr("llava.data.dataset.usable_cores", lambda: 1)
