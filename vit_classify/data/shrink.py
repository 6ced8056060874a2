"""The size in which the cache keeps a picture.

H, W: height and width in pixels, after the EXIF rotation.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from common.pictures import resized_size


def shrunk_size(height: int, width: int, store_size: int) -> tuple[int, int]:
    """Size (height, width) at which a picture is stored: shorter side at most `store_size`, aspect kept."""
    return (height, width) if min(height, width) <= store_size else resized_size(height, width, store_size)


def shrink(pixels: np.ndarray, store_size: int) -> np.ndarray:
    """Resize a picture so that its shorter side is at most `store_size`, antialiased bicubic; never enlarges.

    Args:
        pixels: (H, W, 3) uint8.
        store_size: longest allowed shorter side.

    Returns:
        (h, w, 3) uint8, the input itself where it is small enough.
    """
    height, width = shrunk_size(pixels.shape[0], pixels.shape[1], store_size)
    if (height, width) == pixels.shape[:2]:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
