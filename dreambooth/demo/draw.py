"""Draw the scenes of the dreambooth demo: 32 × 32 pictures made of polygons.

The same generator gives the same bytes on every machine with the same Pillow. A figure's outline is data: parts in a
square from −1 to 1, y downwards, that look to the right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from dreambooth.demo.scenes import Look, Rgb

SIDE = 32
_FINE = 4  # drawn so much larger and averaged down, which smooths the edges
_DARK, _LIGHT, _BEAK = (25, 22, 28), (235, 240, 245), (235, 165, 35)
Point = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """A polygon of a figure.

    Args:
        role: `body` and `accent` take the look's colours, `dark`, `light` and `beak` are the same for all.
        points: corners.
    """

    role: str
    points: tuple[Point, ...]


def _oval(role: str, x: float, y: float, width: float, height: float, tilt: float = 0.0) -> Part:
    turns = [2 * math.pi * i / 28 for i in range(28)]
    sine, cosine = math.sin(tilt), math.cos(tilt)
    flat = [(width * math.cos(a), height * math.sin(a)) for a in turns]
    return Part(role, tuple((x + u * cosine - v * sine, y + u * sine + v * cosine) for u, v in flat))


def _box(role: str, left: float, top: float, right: float, bottom: float) -> Part:
    return Part(role, ((left, top), (right, top), (right, bottom), (left, bottom)))


def _corners(role: str, *points: Point) -> Part:
    return Part(role, points)


PARTS: dict[str, tuple[Part, ...]] = {
    "cat": (
        _oval("body", -0.66, 0.42, 0.15, 0.5, -0.35),
        _oval("accent", -0.84, -0.02, 0.15, 0.17),
        _oval("body", 0.0, 0.5, 0.5, 0.5),
        _corners("accent", (-0.5, -0.35), (-0.5, -1.05), (-0.02, -0.65)),
        _corners("accent", (0.62, -0.35), (0.62, -1.05), (0.14, -0.65)),
        _oval("body", 0.06, -0.32, 0.58, 0.44),
        _oval("accent", 0.08, 0.62, 0.28, 0.3),
        _oval("dark", -0.16, -0.36, 0.1, 0.13),
        _oval("dark", 0.3, -0.36, 0.1, 0.13),
        _oval("dark", 0.07, -0.14, 0.07, 0.05),
    ),
    "dog": (
        _corners("accent", (-0.72, 0.2), (-1.05, -0.35), (-0.88, -0.45), (-0.5, 0.02)),
        _box("body", -0.72, 0.2, -0.5, 0.95),
        _box("body", -0.4, 0.2, -0.2, 0.95),
        _box("body", 0.1, 0.2, 0.3, 0.95),
        _box("body", 0.38, 0.2, 0.58, 0.95),
        _oval("body", -0.08, 0.22, 0.68, 0.34),
        _oval("body", 0.5, -0.32, 0.4, 0.36),
        _oval("body", 0.82, -0.18, 0.26, 0.17),
        _oval("accent", 0.28, -0.28, 0.16, 0.4, 0.15),
        _oval("dark", 0.6, -0.42, 0.09, 0.1),
        _oval("dark", 1.02, -0.24, 0.09, 0.09),
    ),
    "bird": (
        _box("beak", -0.16, 0.5, -0.04, 1.0),
        _box("beak", 0.16, 0.5, 0.28, 1.0),
        _corners("body", (-0.35, -0.05), (-1.05, -0.25), (-0.95, 0.3)),
        _oval("body", 0.0, 0.15, 0.58, 0.48),
        _oval("body", 0.42, -0.48, 0.38, 0.36),
        _corners("beak", (0.7, -0.66), (1.12, -0.42), (0.7, -0.28)),
        _oval("accent", -0.16, 0.12, 0.4, 0.24, 0.35),
        _oval("dark", 0.5, -0.54, 0.1, 0.11),
    ),
    "fish": (
        _corners("accent", (-0.45, 0.0), (-1.05, -0.55), (-0.9, 0.0), (-1.05, 0.55)),
        _corners("accent", (-0.25, -0.35), (0.05, -0.85), (0.4, -0.35)),
        _corners("accent", (-0.1, 0.35), (0.0, 0.75), (0.3, 0.35)),
        _oval("body", 0.18, 0.0, 0.78, 0.48),
        _oval("light", 0.58, -0.1, 0.17, 0.17),
        _oval("dark", 0.62, -0.1, 0.09, 0.1),
    ),
    "car": (
        _corners("body", (-0.62, 0.05), (-0.4, -0.5), (0.38, -0.5), (0.7, 0.05)),
        _corners("light", (-0.45, 0.0), (-0.3, -0.36), (-0.05, -0.36), (-0.05, 0.0)),
        _corners("light", (0.08, 0.0), (0.08, -0.36), (0.32, -0.36), (0.52, 0.0)),
        _corners("body", (-1.05, 0.5), (-1.05, 0.1), (-0.9, 0.0), (0.95, 0.0), (1.08, 0.15), (1.08, 0.5)),
        _box("accent", -1.05, 0.2, 1.08, 0.34),
        _oval("dark", -0.55, 0.52, 0.27, 0.27),
        _oval("dark", 0.58, 0.52, 0.27, 0.27),
        _oval("accent", -0.55, 0.52, 0.11, 0.11),
        _oval("accent", 0.58, 0.52, 0.11, 0.11),
    ),
    "house": (
        _box("accent", 0.4, -0.95, 0.62, -0.4),
        _box("body", -0.75, -0.15, 0.75, 0.92),
        _corners("accent", (-1.02, -0.1), (0.0, -0.98), (1.02, -0.1)),
        _box("dark", -0.5, 0.3, -0.12, 0.92),
        _box("light", 0.14, 0.15, 0.52, 0.53),
    ),
}


def draw(figure: str, look: Look, background: str, rng: np.random.Generator, size: int = SIDE) -> Image.Image:
    """One picture.

    Args:
        figure: one of `scenes.FIGURES`.
        look: its colours.
        background: one of `scenes.BACKGROUNDS`.
        rng: draws place, size, tilt, direction, and the details of the background.
        size: width and height in pixels.

    Returns:
        An RGB picture.
    """
    side = SIDE * _FINE
    picture = Image.new("RGB", (side, side))
    _BACKGROUND[background](ImageDraw.Draw(picture), side, rng)
    radius, tilt = side * rng.uniform(0.3, 0.38), rng.uniform(-0.12, 0.12)
    middle = side * (0.5 + rng.uniform(-0.07, 0.07)), side * (0.56 + rng.uniform(-0.05, 0.05))
    facing = 1 if rng.random() < 0.5 else -1

    def placed(points: Sequence[Point]) -> list[Point]:
        sine, cosine = radius * math.sin(tilt), radius * math.cos(tilt)
        return [
            (middle[0] + facing * u * cosine - v * sine, middle[1] + facing * u * sine + v * cosine) for u, v in points
        ]

    tones = {"body": look.body, "accent": look.accent, "dark": _DARK, "light": _LIGHT, "beak": _BEAK}
    # bodies first, then the markings inside them, then what lies on top; parts behind the body come before it
    last = max(i for i, part in enumerate(PARTS[figure]) if part.role == "body")
    for number, part in enumerate(PARTS[figure]):
        ImageDraw.Draw(picture).polygon(placed(part.points), fill=tones[part.role])
        if number == last and look.markings != "none":
            _mark(picture, [placed(p.points) for p in PARTS[figure] if p.role == "body"], look, placed)
    return picture.resize((size, size), Image.Resampling.BOX)


def _mark(
    picture: Image.Image,
    bodies: Sequence[Sequence[Point]],
    look: Look,
    placed: Callable[[Sequence[Point]], list[Point]],
) -> None:
    """Paint stripes or spots in the accent's colour, inside the body only; they move with the figure."""
    inside, painted = Image.new("L", picture.size), Image.new("L", picture.size)
    for outline in bodies:
        ImageDraw.Draw(inside).polygon(list(outline), fill=255)
    if look.markings == "stripes":
        shapes = [_box("", x, -1.2, x + 0.15, 1.2) for x in (-0.82, -0.36, 0.3, 0.72)]
    else:
        assert look.markings == "spots", look.markings
        rows = [(-0.55, 0.0), (-0.1, 0.25), (0.3, 0.0), (0.75, 0.25)]
        shapes = [_oval("", x + dx, y, 0.12, 0.12) for y, dx in rows for x in (-0.85, -0.35, 0.15, 0.65)]
    for shape in shapes:
        ImageDraw.Draw(painted).polygon(placed(shape.points), fill=255)
    picture.paste(look.accent, mask=ImageChops.multiply(inside, painted))


def _shade(colour: Rgb, rng: np.random.Generator, spread: int = 10) -> Rgb:
    change = int(rng.integers(-spread, spread + 1))
    return tuple(min(255, max(0, v + change)) for v in colour)  # type: ignore[return-value]


def _halves(pen: ImageDraw.ImageDraw, side: int, sky: Rgb, ground: Rgb, at: float) -> None:
    pen.rectangle((0, 0, side, at * side), fill=sky)
    pen.rectangle((0, at * side, side, side), fill=ground)


def _snow(pen: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    _halves(pen, side, _shade((168, 190, 215), rng), _shade((238, 243, 250), rng, 4), rng.uniform(0.5, 0.62))
    for x, y in rng.uniform(0, side, (14, 2)):
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(255, 255, 255))


def _beach(pen: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    shore = rng.uniform(0.55, 0.65)
    _halves(pen, side, _shade((135, 205, 250), rng), _shade((238, 214, 155), rng), shore)
    pen.rectangle((0, side * (shore - 0.2), side, side * shore), fill=_shade((20, 140, 175), rng))


def _grass(pen: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    _halves(pen, side, _shade((150, 210, 250), rng), _shade((110, 200, 75), rng), rng.uniform(0.48, 0.6))
    x, y = side * rng.uniform(0.1, 0.9), side * rng.uniform(0.08, 0.16)
    pen.ellipse((x - 12, y - 12, x + 12, y + 12), fill=(255, 235, 90))


def _jungle(pen: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    _halves(pen, side, _shade((18, 84, 46), rng, 6), _shade((58, 74, 28), rng, 6), 0.75)
    for x in np.arange(0.05, 1.0, 0.19) + rng.uniform(-0.04, 0.04):
        pen.rectangle((side * x, 0, side * (x + 0.06), side * 0.8), fill=(74, 52, 26))
        pen.ellipse((side * (x - 0.1), -side * 0.12, side * (x + 0.16), side * 0.16), fill=(30, 130, 55))


def _city(pen: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    _halves(pen, side, _shade((225, 205, 195), rng), _shade((120, 120, 124), rng), 0.8)
    for number, height in enumerate(rng.uniform(0.35, 0.72, 5)):
        left, top = side * (number * 0.2 + 0.01), side * (0.8 - height)
        pen.rectangle((left, top, left + side * 0.17, side * 0.8), fill=_shade((150, 150, 165), rng, 16))
        for y in np.arange(top + side * 0.05, side * 0.72, side * 0.12):
            for x in (left + side * 0.03, left + side * 0.1):
                pen.rectangle((x, y, x + side * 0.035, y + side * 0.05), fill=(250, 235, 150))


def _night(pen: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    _halves(pen, side, _shade((22, 22, 74), rng, 6), _shade((44, 52, 82), rng, 6), rng.uniform(0.7, 0.8))
    for x, y in rng.uniform(0, 1, (9, 2)) * (side, 0.6 * side):
        pen.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=(255, 255, 220))
    x, y = side * rng.choice((0.14, 0.86)), side * rng.uniform(0.12, 0.18)
    pen.ellipse((x - 12, y - 12, x + 12, y + 12), fill=(250, 245, 200))


_BACKGROUND: dict[str, Callable[[ImageDraw.ImageDraw, int, np.random.Generator], None]] = {
    "in the snow": _snow,
    "on the beach": _beach,
    "on the grass": _grass,
    "in the jungle": _jungle,
    "with a city in the background": _city,
    "at night": _night,
}
