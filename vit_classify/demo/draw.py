"""Draw the demo's pictures: traffic-sign-like drawings of 32x32 pixels, seeded, with no font and no asset.

    python -m vit_classify.demo.draw --output vit_classify/demo/signs

writes the 18 new classes as `{train,test}/CLASS/NN.png`, the pictures that ship with the suite. Shapes are signed
distances, so edges are smooth at any size and every machine draws the same. Every picture has its own pose
(rotation, scale, shift, tilt), background, light, blur, noise and often something in front of the sign.

N: pictures, S: side in pixels, P = S·S.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vit_classify.demo.classes import GLYPHS, NEW, Dot, Fill, Mark, Point, Sign

Array = npt.NDArray[np.floating[Any]]  # float32 throughout

SIDE = 32
SPLITS = {"train": 16, "test": 20}  # pictures per class
SEED = 2026
RIM = 0.16  # width of a sign's rim; most outlines lie in the unit circle


def _polygon(corners: int, turn: float, size: float = 1.0, shift: float = 0.0) -> tuple[Point, ...]:
    angles = 2 * np.pi * (np.arange(corners) + turn) / corners
    return tuple((float(size * np.sin(a)), float(shift - size * np.cos(a))) for a in angles)


OUTLINES: dict[str, tuple[Point, ...]] = {
    "triangle": _polygon(3, 0.0, 1.2, 0.2),
    "triangle_down": _polygon(3, 0.5, 1.2, -0.2),
    "square": _polygon(4, 0.5),
    "diamond": _polygon(4, 0.0),
    "octagon": _polygon(8, 0.5),
}
# Where the pictogram's box lies on a plate: shift downwards, half size.
BOXES = {
    "circle": (0.0, 0.6),
    "octagon": (0.0, 0.55),
    "square": (0.0, 0.48),
    "diamond": (0.0, 0.42),
    "triangle": (0.3, 0.4),
    "triangle_down": (-0.3, 0.4),
}


def _segment_distance(x: Array, y: Array, start: Point, end: Point) -> Array:
    """Distance of points to a segment; x, y: float32 of one shape."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    px, py = x - np.float32(start[0]), y - np.float32(start[1])
    along = np.clip((px * np.float32(dx) + py * np.float32(dy)) / np.float32(dx * dx + dy * dy), 0, 1)
    return np.hypot(px - along * np.float32(dx), py - along * np.float32(dy))


def polygon_distance(x: Array, y: Array, points: Sequence[Point]) -> Array:
    """Signed distance to a polygon, negative inside (even-odd rule); x, y: float32 of one shape."""
    distance = np.full(x.shape, np.inf, np.float32)
    inside = np.zeros(x.shape, bool)
    for start, end in zip(points, (*points[1:], points[0]), strict=True):
        distance = np.minimum(distance, _segment_distance(x, y, start, end))
        if start[1] != end[1]:
            crosses = (y < start[1]) != (y < end[1])
            slope = (end[0] - start[0]) / (end[1] - start[1])
            inside ^= crosses & (x < np.float32(slope) * (y - np.float32(start[1])) + np.float32(start[0]))
    return np.where(inside, -distance, distance)


def mark_distance(x: Array, y: Array, mark: Mark) -> Array:
    """Signed distance to one mark of a pictogram, negative inside; x, y: float32 of one shape."""
    if isinstance(mark, Dot):
        return np.hypot(x - np.float32(mark.centre[0]), y - np.float32(mark.centre[1])) - np.float32(mark.radius)
    if isinstance(mark, Fill):
        return polygon_distance(x, y, mark.points)
    pairs = zip(mark.points[:-1], mark.points[1:], strict=True)
    nearest = np.minimum.reduce([_segment_distance(x, y, start, end) for start, end in pairs])
    return nearest - np.float32(mark.half_width)


def _grid() -> tuple[Array, Array]:
    """Pixel centres, x and y in [-1, 1], each (1, P)."""
    steps = (2 * np.arange(SIDE, dtype=np.float32) + 1) / SIDE - 1
    x, y = np.meshgrid(steps, steps)
    return x.reshape(1, -1), y.reshape(1, -1)


def _uniform(rng: np.random.Generator, count: int, low: float, high: float, *shape: int) -> Array:
    return rng.uniform(low, high, (count, *(shape or (1,)))).astype(np.float32)


def _pose(rng: np.random.Generator, count: int) -> tuple[Array, Array, Array]:
    """Map pixels to sign coordinates: x, y (N, P) and the size of a pixel in sign units (N, 1)."""
    x, y = _grid()
    angle = _uniform(rng, count, -0.22, 0.22)
    scale = _uniform(rng, count, 0.76, 0.98)
    aspect = _uniform(rng, count, 0.87, 1.15)
    x = x - _uniform(rng, count, -0.13, 0.13)
    y = y - _uniform(rng, count, -0.13, 0.13)
    depth = 1 + _uniform(rng, count, -0.16, 0.16) * x + _uniform(rng, count, -0.16, 0.16) * y
    cos, sin = np.cos(angle), np.sin(angle)
    u = (cos * x + sin * y + _uniform(rng, count, -0.12, 0.12) * y) / (scale * aspect) / depth
    v = (-sin * x + cos * y) / (scale / aspect) / depth
    return u, v, 2 / SIDE / scale


def _smooth_field(rng: np.random.Generator, count: int, cells: int) -> Array:
    """Random values in [-1, 1] on a coarse grid, bilinearly enlarged: (N, P)."""
    at = np.linspace(0, cells - 1, SIDE, dtype=np.float32)
    weight = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells, dtype=np.float32)))  # (S, cells)
    values = _uniform(rng, count, -1, 1, cells, cells)
    return np.einsum("sc,ncd,td->nst", weight, values, weight).reshape(count, -1)


def _paint(canvas: Array, coverage: Array, colour: Array) -> Array:
    """Lay colour (N or 1, 1, 3) over canvas (N, P, 3) where coverage (N, P) in [0, 1] says so."""
    return canvas + coverage[..., None] * (colour - canvas)


def _dull(rng: np.random.Generator, count: int) -> Array:
    """Random colours, more grey than not: (N, 1, 3)."""
    return np.clip(_uniform(rng, count, 0.1, 0.85, 1, 1) + _uniform(rng, count, -0.18, 0.18, 1, 3), 0, 1)


def _background(rng: np.random.Generator, count: int) -> Array:
    """A blurred street: soft patches of two colours and a few straight edges; (N, P, 3)."""
    x, y = _grid()
    first, second = (_dull(rng, count) for _ in range(2))
    share = np.clip(0.5 + 0.8 * _smooth_field(rng, count, 4) + 0.4 * _smooth_field(rng, count, 9), 0, 1)
    canvas = _paint(np.broadcast_to(first, (count, SIDE * SIDE, 3)), share, second)
    for _ in range(2):
        angle = _uniform(rng, count, 0, 2 * np.pi)
        depth = np.cos(angle) * x + np.sin(angle) * y - _uniform(rng, count, 0.2, 1.2)
        coverage = np.clip(depth / _uniform(rng, count, 0.06, 0.4), 0, 1)
        canvas = _paint(canvas, coverage, _dull(rng, count))
    return canvas


def _sign(rng: np.random.Generator, canvas: Array, sign: Sign) -> Array:
    """Paint the sign with its own pose on every picture of canvas (N, P, 3)."""
    count = len(canvas)
    u, v, pixel = _pose(rng, count)
    soft = pixel * _uniform(rng, count, 1.0, 2.0)  # width of an edge: a pixel and more where out of focus
    if sign.shape == "circle":
        outline = np.hypot(u, v) - np.float32(0.95)
    else:
        outline = polygon_distance(u, v, OUTLINES[sign.shape])
    wear = 0.1 * _smooth_field(rng, count, 5)[..., None]  # sun and dirt change the paint from place to place
    tint = _uniform(rng, count, -0.07, 0.07, 1, 3)
    shift, size = BOXES[sign.shape]
    glyph_x, glyph_y = u / np.float32(size), (v - np.float32(shift)) / np.float32(size)
    marks = [mark_distance(glyph_x, glyph_y, mark) for mark in GLYPHS[sign.glyph]]
    layers = [(outline, sign.rim), (outline + np.float32(RIM), sign.plate)]
    if marks:
        layers.append((np.minimum.reduce(marks) * np.float32(size), sign.ink))
    for distance, colour in layers:
        coverage = np.clip(0.5 - distance / soft, 0, 1)
        canvas = _paint(canvas, coverage, np.asarray(colour, np.float32) + tint + wear)
    return canvas


def _obstacle(rng: np.random.Generator, canvas: Array) -> Array:
    """A twig or a pole in front of three pictures in ten."""
    count = len(canvas)
    x, y = _grid()
    angle = _uniform(rng, count, 0, np.pi)
    away = np.abs(np.cos(angle) * x + np.sin(angle) * y - _uniform(rng, count, -0.8, 0.8))
    half_width = _uniform(rng, count, 0.03, 0.11) - 10 * (_uniform(rng, count, 0, 1) > 0.3)
    coverage = np.clip(0.5 - (away - half_width) * SIDE / 3, 0, 1)
    return _paint(canvas, coverage, 0.7 * _dull(rng, count))


def _light(rng: np.random.Generator, canvas: Array) -> Array:
    """Exposure, contrast, colour of the light, a shadow across the picture, and the sensor's noise."""
    count = len(canvas)
    exposure = _uniform(rng, count, 0.45, 1.15)[..., None] * (1 + 0.3 * _smooth_field(rng, count, 3)[..., None])
    canvas = canvas * exposure * _uniform(rng, count, 0.85, 1.15, 1, 3)
    canvas = (canvas - 0.4) * _uniform(rng, count, 0.65, 1.15, 1, 1) + 0.4
    noise = rng.standard_normal(canvas.shape).astype(np.float32)
    return canvas + noise * _uniform(rng, count, 0.005, 0.05, 1, 1)


def draw(sign: Sign, count: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one class.

    Args:
        sign: the class.
        count: how many pictures, N.
        rng: the source of everything random; the same state draws the same pictures.

    Returns:
        uint8 (N, 32, 32, 3).
    """
    canvas = _background(rng, count)
    canvas = _sign(rng, canvas, sign)
    canvas = _obstacle(rng, canvas)
    canvas = _light(rng, canvas)
    pixels = np.clip(np.rint(canvas * 255), 0, 255).astype(np.uint8)
    return pixels.reshape(count, SIDE, SIDE, 3)


def draw_split(sign: Sign, split: str, seed: int = SEED) -> npt.NDArray[np.uint8]:
    """The shipped pictures of one class and split (`train` or `test`): uint8 (N, 32, 32, 3)."""
    stream = [seed, list(SPLITS).index(split), *sign.name.encode()]  # no class depends on the others
    return draw(sign, SPLITS[split], np.random.default_rng(stream))


def write(output: Path, signs: Sequence[Sign] = NEW, seed: int = SEED) -> int:
    """Write `output/{train,test}/CLASS/NN.png`; returns the number of pictures."""
    written = 0
    for split in SPLITS:
        for sign in signs:
            folder = output / split / sign.name
            folder.mkdir(parents=True, exist_ok=True)
            for index, picture in enumerate(draw_split(sign, split, seed)):
                Image.fromarray(picture).save(folder / f"{index:02d}.png", optimize=True)
                written += 1
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Write the shipped data set; see the module's description."""
    parser = argparse.ArgumentParser(prog="python -m vit_classify.demo.draw", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write {train,test}/CLASS/NN.png into")
    parser.add_argument("--seed", type=int, default=SEED, help=f"default {SEED}, the shipped pictures")
    arguments = parser.parse_args(argv)
    written = write(arguments.output, seed=arguments.seed)
    print(f"wrote {written} pictures of {len(NEW)} classes into {arguments.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
