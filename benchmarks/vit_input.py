"""Pictures per second and core on the way from a file, or from the cache, to a normalised batch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from measure import Row, medians
from PIL import Image
from torch import Tensor
from torchvision import transforms

from common.pictures import ENDINGS
from vit_classify.config import DataConfig, Pixels
from vit_classify.data import DeviceTransform, Split, TrainImages, collate, open_data

SIZE = 224
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
REFERENCE = "PIL + torchvision"


def draw_pictures(folder: Path, count: int) -> list[Path]:
    """JPEG files of 500×375 with the spectrum of photographs (amplitude falls as 1/frequency), quality 90."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)[None])
    frequency[0, 0] = np.inf
    paths = []
    for i in range(count):
        noise = np.fft.rfft2(rng.standard_normal((3, 375, 500))) / frequency
        field = np.fft.irfft2(noise, (375, 500))
        pixels = np.clip(128 + 50 * field / field.std(axis=(1, 2), keepdims=True), 0, 255).astype(np.uint8)
        paths.append(folder / f"{i:04}.jpg")
        Image.fromarray(pixels.transpose(1, 2, 0)).save(paths[-1], quality=90)
    return paths


def find_pictures(folder: Path, count: int) -> list[Path]:
    """Up to `count` pictures of a folder, evenly over its sorted tree."""
    paths = sorted(path for path in folder.expanduser().rglob("*") if path.suffix.lower() in ENDINGS)
    if not paths:
        raise SystemExit(f"--images {folder}: no pictures there")
    return paths[:: max(1, len(paths) // count)][:count]


def as_set(paths: Sequence[Path], folder: Path) -> None:
    """Lay the pictures out as a class-per-folder set of two classes."""
    for i, path in enumerate(paths):
        for split in ("train", "validation", "test"):
            place = folder / split / f"class_{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            os.symlink(path.resolve(), place / f"{i:05}{path.suffix}")


def input_rows(images: Path | None, pictures: int, repeats: int, device: torch.device) -> list[Row]:
    """Time every way on the same pictures and one core.

    Args:
        images: a folder of pictures; None: drawn ones.
        pictures: how many.
        repeats: medians over so many passes.
        device: where there is a GPU, its share of the work is timed too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "drawn").mkdir()
        as_set(find_pictures(images, pictures) if images else draw_pictures(root / "drawn", pictures), root / "set")
        cached, decoded = _opened(root, "cache"), _opened(root, "decode")
        files = [root / "set" / cached.describe(i) for i in range(len(cached))]
        transform = DeviceTransform(SIZE, MEAN, STD)
        tasks: dict[str, Callable[[], object]] = {
            REFERENCE: lambda: _with_torchvision(files),
            "cache, whole path on the CPU": lambda: transform(_batch(cached, "cpu")),
            "cache, worker's part where a GPU resizes": lambda: _batch(cached, "device"),
            "decoding on the fly, whole path on the CPU": lambda: transform(_batch(decoded, "cpu")),
        }
        took = medians(tasks, repeats, torch.device("cpu"))
        rate = {what: len(files) / seconds for what, seconds in took.items()}
        rows = [Row(REFERENCE, rate[REFERENCE], "pictures/s")]
        for what in list(tasks)[1:]:
            target = "≥ 4" if what.startswith("cache") else ""
            rows.append(Row(what, rate[what], "pictures/s", rate[what] / rate[REFERENCE], REFERENCE, target))
        if device.type == "cuda":
            there = {key: value.to(device) for key, value in _batch(cached, "device").items()}
            transform.to(device)
            seconds = medians({"": lambda: transform(there)}, repeats, device)[""]
            rows.append(Row("resize and normalise on the GPU", len(files) / seconds, "pictures/s"))
    torch.set_num_threads(threads)
    return rows


def _opened(root: Path, pixels: Pixels) -> Split:
    config = DataConfig("benchmark", str(root / "set"), pixels=pixels, cache_dir=str(root / "cache"), num_workers=0)
    return open_data(config).train


def _batch(split: Split, resize_on: Any) -> dict[str, Tensor]:
    images = TrainImages(split, split.store, SIZE, 0, resize_on)
    return collate([images[(0, i)] for i in range(len(images))])


def _with_torchvision(files: Sequence[Path]) -> Tensor:
    bicubic = transforms.InterpolationMode.BICUBIC
    crop = transforms.RandomResizedCrop(SIZE, (0.9, 1.0), interpolation=bicubic)
    reference = transforms.Compose([crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    return torch.stack([reference(Image.open(file).convert("RGB")) for file in files])
