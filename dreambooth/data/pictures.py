"""A picture file → what there is to say about it, the crops that are trained on, and SDXL's words for them.

V variants (a crop, mirrored or not) of a picture, R side of a training picture, H and W height and width. *Original* is
a picture's size after the EXIF rotation and before it is scaled; *scaled* the size in which its shorter side is R.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import xxhash
from PIL import Image
from torch import Tensor

from common.pictures import FORMATS, decode, resized_size, turn_of
from dreambooth.config import Crop

_KINDS = {"1": "black and white", "L": "grey", "LA": "grey", "I": "16-bit grey", "CMYK": "CMYK"}
_RANDOM = 1 << 64


class Look(NamedTuple):
    """What a picture is.

    Args:
        content: hash of the file.
        height: original.
        width: original.
        remarks: what was done to make it upright 8-bit RGB, in words.
    """

    content: str
    height: int
    width: int
    remarks: tuple[str, ...]


class Variant(NamedTuple):
    """A square of R x R of a scaled picture.

    Args:
        top: of the crop in the scaled picture.
        left: of the crop in the scaled picture as it is trained on, that is in the mirrored one where it is mirrored.
        mirrored: left and right change places before the crop.
    """

    top: int
    left: int
    mirrored: bool


@dataclass(frozen=True)
class Cropping:
    """How variants are drawn.

    Args:
        resolution: R.
        crop: where the crop is taken.
        flip: whether half of the variants are mirrored.
        variants: V at most; equal ones count once.
        seed: of the places.
    """

    resolution: int
    crop: Crop
    flip: bool
    variants: int
    seed: int


def look(data: bytes) -> Look:
    """Unpack a picture and see what it is.

    Raises:
        DecodeError: it cannot be read.
    """
    height, width = decode(data).shape[:2]
    remarks = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `decode` has read it all: what Pillow says now of odd metadata helps nobody
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if getattr(image, "n_frames", 1) > 1:
            remarks.append("animated: its first frame is taken")
        if turn_of(image) is not None:
            remarks.append("turned upright, as its EXIF data say")
        if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            remarks.append("transparent: laid on white")
        if kind := _KINDS.get(image.mode.partition(";")[0]):
            remarks.append(f"{kind}, made RGB")
    return Look(xxhash.xxh3_128_hexdigest(data), height, width, tuple(remarks))


def draw_variants(height: int, width: int, content: str, cropping: Cropping) -> list[Variant]:
    """The different variants of a picture, the same whatever other pictures there are.

    Args:
        height: original.
        width: original.
        content: hash of the picture.
        cropping: how they are drawn.
    """
    size = cropping.resolution
    rows, columns = (length - size for length in resized_size(height, width, size))
    rng = np.random.default_rng([cropping.seed, int(content, 16) % _RANDOM])
    # Every other one: no picture is mirrored for the whole training, and not all of them in the same pass.
    first_mirrored = int(rng.integers(2))
    found = []
    for i in range(cropping.variants):
        if cropping.crop == "center":
            top, left = round(rows / 2), round(columns / 2)
        else:
            top, left = int(rng.integers(rows + 1)), int(rng.integers(columns + 1))
        found.append(Variant(top, left, cropping.flip and (i + first_mirrored) % 2 == 1))
    return list(dict.fromkeys(found))


def time_ids(height: int, width: int, variant: Variant, resolution: int) -> list[int]:
    """SDXL's micro-conditioning (Podell et al. 2023, section 2.2), in the order of diffusers' `add_time_ids`.

    A mirrored picture is mirrored first and cropped then, as SDXL's training did: the offsets are those in the picture
    that the crop was taken from, and a subject cut off at the crop's left is cut off by `left`.

    Returns:
        original height and width, crop top and left (in the scaled picture), target height and width.
    """
    return [height, width, variant.top, variant.left, resolution, resolution]


def crops(data: bytes, variants: Sequence[Variant], resolution: int) -> Tensor:
    """The variants of a picture as a VAE takes them.

    The scaled picture is never made whole, only what the crop shows of it: 1 x 50 000 pixels scaled up would need more
    memory than there is.

    Args:
        data: the file's content.
        variants: which squares.
        resolution: R.

    Returns:
        (V, 3, R, R) float32 in [-1, 1].

    Raises:
        DecodeError: it cannot be read.
    """
    image = Image.fromarray(decode(data))
    rows, columns = resized_size(image.height, image.width, resolution)
    squares = np.empty((len(variants), resolution, resolution, 3), dtype=np.uint8)
    for square, (top, left, mirrored) in zip(squares, variants, strict=True):
        # The crop at `left` of the mirrored picture shows what lies at this place of the one that is not.
        start = columns - resolution - left if mirrored else left
        across, down = image.width / columns, image.height / rows
        box = (start * across, top * down, (start + resolution) * across, (top + resolution) * down)
        box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
        part = image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)
        square[:] = np.asarray(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else part)
    return torch.from_numpy(squares).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
