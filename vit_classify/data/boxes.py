"""Which part of a picture is seen: the boxes of torchvision's transforms as pure functions.

A box is (top, left, height, width) in pixels of the stored picture.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from common.pictures import resized_size

SCALE = (0.9, 1.0)
RATIO = (3 / 4, 4 / 3)
_TRIES = 10


class Box(NamedTuple):
    """A part of a picture, in pixels; whole numbers for a crop, fractions where a resize came first."""

    top: float
    left: float
    height: float
    width: float


def random_resized_crop(height: int, width: int, seed: int, epoch: int, index: int) -> Box:
    """The box of torchvision's `RandomResizedCrop(scale=(0.9, 1), ratio=(3/4, 4/3))`.

    Same algorithm and distribution; the draw depends on (seed, epoch, index) alone, so that it is the same for any
    batch size, number of workers or processes, and after a resume.

    Args:
        height: of the picture.
        width: of the picture.
        seed: the run's seed.
        epoch: which pass over the data.
        index: the sample's index in the split.

    Returns:
        a box of whole numbers inside the picture.
    """
    draws = np.random.Generator(np.random.PCG64((seed, epoch, index))).random((_TRIES, 4))
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for size_draw, ratio_draw, top_draw, left_draw in draws.tolist():
        target = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * size_draw)
        aspect = math.exp(low + (high - low) * ratio_draw)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1)), h, w)
    return _central(height, width)


def _central(height: int, width: int) -> Box:
    # torchvision's fallback: the largest centred box whose aspect lies in RATIO.
    h, w = height, width
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def resize_center_crop(height: int, width: int, size: int) -> Box:
    """The part of a picture that `Resize(size)` and `CenterCrop(size)` of torchvision show, in its own pixels.

    Resampling this box to (size, size), with the filter reaching beyond the box, equals the two transforms.
    """
    new_height, new_width = resized_size(height, width, size)
    top, left = round((new_height - size) / 2.0), round((new_width - size) / 2.0)
    y, x = height / new_height, width / new_width
    return Box(top * y, left * x, size * y, size * x)
