"""Small drawn pictures that stand for a subject's photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def draw_subject(folder: Path, count: int = 3, side: int = 24) -> Path:
    """A folder of PNG files of a yellow disc on grounds of different colours."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        picture = Image.new("RGB", (side, side), tuple(int(value) for value in rng.integers(0, 200, 3)))
        left, top = (int(value) for value in rng.integers(2, side // 2, 2))
        ImageDraw.Draw(picture).ellipse((left, top, left + side // 2, top + side // 2), fill=(240, 210, 40))
        picture.save(folder / f"{number:02}.png")
    return folder
