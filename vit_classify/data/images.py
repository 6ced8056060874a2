"""Samples and batches: what a worker prepares, and what is left for the device.

S: image size of the model, B: batch, H, W: canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from common.pictures import resized_size
from vit_classify.data.boxes import Box, random_resized_crop, resize_center_crop
from vit_classify.data.resample import crop_resize
from vit_classify.data.splits import Split
from vit_classify.data.store import Store

ResizeOn = Literal["auto", "cpu", "device"]

# Pictures of a batch that are float32 at one time on the device: bounds the memory (about 200 MB).
_AT_ONCE = 64
# A test picture with an aspect beyond this is not resized whole: a line of 1 x 5000 pixels would need 750 MB.
_LONGEST = 8


class Sample(TypedDict, total=False):
    """A picture ready for `collate`: either `image` or `canvas` with `box`."""

    image: Tensor  # (3, S, S) uint8
    canvas: np.ndarray  # (h, w, 3) uint8
    box: Box  # within the canvas
    label: int


def _resolve(resize_on: ResizeOn) -> Literal["cpu", "device"]:
    if resize_on == "auto":
        return "device" if torch.cuda.is_available() else "cpu"
    return resize_on


class TrainImages(Dataset[Sample]):
    """Randomly cropped training pictures, indexed by (epoch, index).

    Args:
        split: labels.
        store: pixels, `split.store`.
        image_size: S.
        seed: of the crops; sample (epoch, index) is a function of (seed, epoch, index) alone.
        resize_on: `cpu`: the worker crops and resizes; `device`: it only crops, and `DeviceTransform` resizes;
            `auto`: `device` where there is a CUDA device. Both give the same pixels within two levels.
    """

    def __init__(self, split: Split, store: Store, image_size: int, seed: int, resize_on: ResizeOn = "auto") -> None:
        self.split, self.store, self.image_size, self.seed = split, store, image_size, seed
        self.resize_on = _resolve(resize_on)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        picture = self.store.image(index)
        box = random_resized_crop(picture.shape[0], picture.shape[1], self.seed, epoch, index)
        top, left, height, width = (int(value) for value in box)
        crop = picture[top : top + height, left : left + width]
        label = int(self.split.labels[index])
        if self.resize_on == "device":
            return {"canvas": crop, "box": Box(0.0, 0.0, height, width), "label": label}
        return {"image": _resize(crop, self.image_size, self.image_size), "label": label}


class EvalImages(Dataset[Sample]):
    """Centre-cropped pictures, indexed by int: torchvision's `Resize(S)` and `CenterCrop(S)`.

    Args:
        split: labels.
        store: pixels, `split.store`.
        image_size: S.
        resize_on: as for `TrainImages`.
    """

    def __init__(self, split: Split, store: Store, image_size: int, resize_on: ResizeOn = "auto") -> None:
        self.split, self.store, self.image_size = split, store, image_size
        self.resize_on = _resolve(resize_on)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        picture = self.store.image(index)
        height, width = picture.shape[:2]
        label = int(self.split.labels[index])
        if self.resize_on == "device":
            canvas, box = _with_margin(picture, resize_center_crop(height, width, self.image_size), self.image_size)
            return {"canvas": canvas, "box": box, "label": label}
        return {"image": _resize_center_crop(picture, self.image_size), "label": label}


def _with_margin(picture: np.ndarray, box: Box, size: int) -> tuple[np.ndarray, Box]:
    """The part of a picture that the filter reaches when the box is resampled, and the box within that part."""
    spans = []
    for start, length, extent in ((box.top, box.height, picture.shape[0]), (box.left, box.width, picture.shape[1])):
        reach = 2 * max(length / size, 1.0) + 1
        spans.append((max(0, int(start - reach)), min(extent, int(start + length + reach) + 1)))
    (top, bottom), (left, right) = spans
    return picture[top:bottom, left:right], Box(box.top - top, box.left - left, box.height, box.width)


def _resize_center_crop(picture: np.ndarray, size: int) -> Tensor:
    """torchvision's `Resize(size)` and `CenterCrop(size)`, (h, w, 3) uint8 -> (3, size, size) uint8."""
    height, width = picture.shape[:2]
    new_height, new_width = resized_size(height, width, size)
    if max(new_height, new_width) > _LONGEST * size:
        canvas, box = _with_margin(picture, resize_center_crop(height, width, size), size)
        parts = torch.from_numpy(np.array(canvas))[None], torch.tensor([box]).double(), torch.tensor([canvas.shape[:2]])
        return crop_resize(*parts, size)[0].to(torch.uint8)
    top, left = round((new_height - size) / 2.0), round((new_width - size) / 2.0)
    return _resize(picture, new_height, new_width)[:, top : top + size, left : left + size]


def _resize(pixels: np.ndarray, height: int, width: int) -> Tensor:
    """Antialiased bicubic, (h, w, 3) uint8 -> (3, height, width) uint8, within one level of Pillow's."""
    tensor = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]  # channels last: torch's fast uint8 path
    return F.interpolate(tensor, (height, width), mode="bicubic", antialias=True)[0]


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Stack samples.

    Returns:
        `labels` (B,) int64 and either `images` (B, 3, S, S) uint8, or `canvas` (B, H, W, 3) uint8 padded with zeros
        below and to the right, `box` (B, 4) float64 and `extent` (B, 2) int64.
    """
    labels = torch.tensor([sample["label"] for sample in samples], dtype=torch.int64)
    if "image" in samples[0]:
        return {"images": torch.stack([sample["image"] for sample in samples]), "labels": labels}
    extent = torch.tensor([sample["canvas"].shape[:2] for sample in samples])
    height, width = extent.amax(dim=0).tolist()
    canvas = np.zeros((len(samples), height, width, 3), dtype=np.uint8)
    for row, sample in enumerate(samples):
        h, w = sample["canvas"].shape[:2]
        canvas[row, :h, :w] = sample["canvas"]
    box = torch.tensor([sample["box"] for sample in samples], dtype=torch.float64)
    return {"canvas": torch.from_numpy(canvas), "box": box, "extent": extent, "labels": labels}


class DeviceTransform(nn.Module):
    """What is left to do on the device: resize where it was not done, scale to [0, 1], normalise.

    Args:
        image_size: S.
        mean: (3,) per channel, of pixels in [0, 1].
        std: (3,) per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    @torch.no_grad()
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """`pixel_values` (B, 3, S, S) float32 on the batch's device, from what `collate` returned."""
        pixels = batch["images"] if "images" in batch else batch["canvas"]
        # Autocast would run the products in bfloat16, which is off by up to a level.
        with torch.autocast(pixels.device.type, enabled=False):
            images = pixels.float() if "images" in batch else self._resize(batch)
            mean, std = self.mean.to(images.device), self.std.to(images.device)
            return images.sub_(mean).div_(std)

    def _resize(self, batch: dict[str, Tensor]) -> Tensor:
        parts = [batch[key].split(_AT_ONCE) for key in ("canvas", "box", "extent")]
        return torch.cat(
            [crop_resize(canvas, box, extent, self.image_size) for canvas, box, extent in zip(*parts, strict=True)]
        )
