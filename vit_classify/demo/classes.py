"""The traffic-sign-like classes of the demo, as shapes, colours and pictograms made of strokes.

Two disjoint sets. `PRETRAINING`: 24 signs that differ in outline, colours and pictogram; the tiny base learns
these. `NEW`: 18 signs in three families of six; within a family only the pictogram differs, and no pictogram
occurs in the pretraining set. A frozen base tells the families apart, but was never asked to read these
pictograms: this is what an adapter has to learn.

Coordinates: x to the right, y down, the pictogram's box is [-1, 1] x [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

Point = tuple[float, float]
Colour = tuple[float, float, float]  # red, green, blue in [0, 1]


@dataclass(frozen=True)
class Stroke:
    """A line through `points` of half width `half_width`, with round ends."""

    points: tuple[Point, ...]
    half_width: float = 0.16


@dataclass(frozen=True)
class Fill:
    """A filled polygon."""

    points: tuple[Point, ...]


@dataclass(frozen=True)
class Dot:
    """A filled disc."""

    centre: Point
    radius: float


Mark = Stroke | Fill | Dot


@dataclass(frozen=True)
class Sign:
    """A class: an outline with a rim, a plate inside it and a pictogram on the plate."""

    name: str
    shape: str
    rim: Colour
    plate: Colour
    glyph: str
    ink: Colour


RED, BLUE, GREEN = (0.78, 0.08, 0.10), (0.08, 0.25, 0.65), (0.05, 0.45, 0.25)
WHITE, BLACK, YELLOW = (0.93, 0.93, 0.92), (0.06, 0.06, 0.07), (0.95, 0.75, 0.08)
ORANGE = (0.93, 0.45, 0.08)


def _arrow_head(tip: Point, direction: Point, size: float = 0.5) -> Fill:
    (x, y), (dx, dy) = tip, direction
    back_x, back_y = x - size * dx, y - size * dy
    return Fill(((x, y), (back_x - size * dy, back_y + size * dx), (back_x + size * dy, back_y - size * dx)))


def _mirrored(marks: tuple[Mark, ...]) -> tuple[Mark, ...]:
    turned: list[Mark] = []
    for mark in marks:
        if isinstance(mark, Dot):
            turned.append(Dot((-mark.centre[0], mark.centre[1]), mark.radius))
        elif isinstance(mark, Stroke):
            turned.append(Stroke(tuple((-x, y) for x, y in mark.points), mark.half_width))
        else:
            turned.append(Fill(tuple((-x, y) for x, y in mark.points)))
    return tuple(turned)


# Strokes of the figures in a box of half width 0.34 and half height 0.8 (seven segments, two slanted ones).
_W, _H = 0.32, 0.78
_FIGURES: dict[str, tuple[tuple[Point, ...], ...]] = {
    "0": (((-_W, -_H), (_W, -_H), (_W, _H), (-_W, _H), (-_W, -_H)),),
    "2": (((-_W, -_H), (_W, -_H), (_W, 0), (-_W, 0.1), (-_W, _H), (_W, _H)),),
    "3": (((-_W, -_H), (_W, -_H), (_W, _H), (-_W, _H)), ((-0.1, 0), (_W, 0))),
    "5": (((_W, -_H), (-_W, -_H), (-_W, 0), (_W, 0), (_W, _H), (-_W, _H)),),
    "6": (((_W, -_H), (-_W, -_H), (-_W, _H), (_W, _H), (_W, 0), (-_W, 0)),),
    "7": (((-_W, -_H), (_W, -_H), (-0.1, _H)),),
    "8": (((-_W, -_H), (_W, -_H), (_W, _H), (-_W, _H), (-_W, -_H)), ((-_W, 0), (_W, 0))),
}


def _number(text: str) -> tuple[Mark, ...]:
    marks = []
    for figure, centre in zip(text, (-0.52, 0.52), strict=True):
        marks += [Stroke(tuple((x + centre, y) for x, y in line), 0.13) for line in _FIGURES[figure]]
    return tuple(marks)


_BEND: tuple[Mark, ...] = (
    Stroke(((0.3, 0.9), (0.3, 0.1), (-0.2, -0.3), (-0.2, -0.5))),
    _arrow_head((-0.2, -1.0), (0, -1)),
)
_TURN: tuple[Mark, ...] = (Stroke(((0.35, 0.85), (0.35, -0.1), (-0.5, -0.1))), _arrow_head((-1.0, -0.1), (-1, 0)))
_AHEAD_OR_TURN: tuple[Mark, ...] = (
    Stroke(((0.25, 0.9), (0.25, -0.5))),
    _arrow_head((0.25, -1.0), (0, -1), 0.45),
    Stroke(((0.25, 0.35), (-0.5, 0.35))),
    _arrow_head((-0.95, 0.35), (-1, 0), 0.4),
)
_KEEP: tuple[Mark, ...] = (Stroke(((0.6, -0.7), (-0.35, 0.4))), _arrow_head((-0.7, 0.8), (-0.66, 0.75), 0.5))

GLYPHS: dict[str, tuple[Mark, ...]] = {
    # Pretraining.
    "none": (),
    "bar": (Stroke(((-0.8, 0), (0.8, 0)), 0.24),),
    "exclamation": (Stroke(((0, -0.85), (0, 0.25)), 0.2), Dot((0, 0.78), 0.2)),
    "cross": (Stroke(((-0.75, -0.75), (0.75, 0.75))), Stroke(((-0.75, 0.75), (0.75, -0.75)))),
    "plus": (Stroke(((0, -0.85), (0, 0.85)), 0.2), Stroke(((-0.85, 0), (0.85, 0)), 0.2)),
    "disc": (Dot((0, 0), 0.55),),
    "letter_p": (Stroke(((-0.4, 0.9), (-0.4, -0.85), (0.35, -0.85), (0.45, -0.4), (0.35, 0.05), (-0.4, 0.05)), 0.18),),
    "letter_h": (
        Stroke(((-0.5, -0.85), (-0.5, 0.85)), 0.18),
        Stroke(((0.5, -0.85), (0.5, 0.85)), 0.18),
        Stroke(((-0.5, 0), (0.5, 0)), 0.18),
    ),
    "car": (
        Fill(
            (
                (-0.95, 0.45),
                (-0.95, 0),
                (-0.5, -0.05),
                (-0.3, -0.5),
                (0.35, -0.5),
                (0.6, -0.05),
                (0.95, 0),
                (0.95, 0.45),
            )
        ),
        Dot((-0.5, 0.5), 0.22),
        Dot((0.5, 0.5), 0.22),
    ),
    "two_bars": (Stroke(((-0.4, -0.8), (-0.4, 0.8)), 0.2), Stroke(((0.4, -0.8), (0.4, 0.8)), 0.2)),
    "wave": (Stroke(((-0.9, 0.3), (-0.45, -0.3), (0, 0.3), (0.45, -0.3), (0.9, 0.3))),),
    "house": (Fill(((-0.7, 0.8), (-0.7, -0.05), (0, -0.8), (0.7, -0.05), (0.7, 0.8))),),
    "tree": (Fill(((0, -0.95), (0.65, 0.35), (-0.65, 0.35))), Stroke(((0, 0.35), (0, 0.9)))),
    "cup": (
        Fill(((-0.65, -0.6), (0.35, -0.6), (0.25, 0.7), (-0.55, 0.7))),
        Stroke(((0.4, -0.3), (0.8, -0.2), (0.35, 0.35)), 0.1),
    ),
    "down": (Stroke(((0, -0.9), (0, 0.4)), 0.2), _arrow_head((0, 0.95), (0, 1))),
    "key": (Dot((-0.5, 0), 0.38), Stroke(((-0.3, 0), (0.9, 0)), 0.13), Stroke(((0.75, 0), (0.75, 0.4)), 0.13)),
    # New, family 1: speed limits.
    **{f"number_{text}": _number(text) for text in ("20", "30", "50", "60", "70", "80")},
    # New, family 2: warnings.
    "bend_left": _BEND,
    "bend_right": _mirrored(_BEND),
    "crossroads": (Stroke(((0, -0.9), (0, 0.9)), 0.2), Stroke(((-0.75, 0.3), (0.75, 0.3)), 0.2)),
    "bump": (Fill(((-0.95, 0.7), (-0.5, 0.55), (-0.25, -0.05), (0.25, -0.05), (0.5, 0.55), (0.95, 0.7))),),
    "narrows": (
        Stroke(((-0.6, 0.9), (-0.6, 0.3), (-0.25, -0.1), (-0.25, -0.8)), 0.13),
        Stroke(((0.6, 0.9), (0.6, 0.3), (0.25, -0.1), (0.25, -0.8)), 0.13),
    ),
    "walker": (
        Dot((0.05, -0.72), 0.24),
        Stroke(((0.05, -0.4), (0, 0.2), (-0.4, 0.9)), 0.14),
        Stroke(((0, 0.2), (0.4, 0.9)), 0.14),
        Stroke(((-0.5, 0.1), (0.05, -0.3), (0.5, 0.1)), 0.11),
    ),
    # New, family 3: compulsory directions.
    "turn_left": _TURN,
    "turn_right": _mirrored(_TURN),
    "ahead_or_left": _AHEAD_OR_TURN,
    "ahead_or_right": _mirrored(_AHEAD_OR_TURN),
    "keep_left": _KEEP,
    "keep_right": _mirrored(_KEEP),
}

PRETRAINING: tuple[Sign, ...] = (
    *(
        Sign(f"no_{glyph}", "circle", RED, WHITE, glyph, BLACK)
        for glyph in ("none", "car", "two_bars", "cup", "key", "house")
    ),
    *(
        Sign(f"danger_{glyph}", "triangle", RED, WHITE, glyph, BLACK)
        for glyph in ("exclamation", "cross", "wave", "tree", "car", "disc")
    ),
    *(
        Sign(f"use_{glyph}", "circle", BLUE, BLUE, glyph, WHITE)
        for glyph in ("car", "down", "cup", "key", "letter_h", "wave")
    ),
    Sign("stop", "octagon", RED, RED, "bar", WHITE),
    Sign("yield", "triangle_down", RED, WHITE, "none", BLACK),
    Sign("priority", "diamond", WHITE, YELLOW, "none", BLACK),
    Sign("parking", "square", WHITE, BLUE, "letter_p", WHITE),
    Sign("first_aid", "square", GREEN, GREEN, "plus", WHITE),
    Sign("works", "diamond", BLACK, ORANGE, "exclamation", BLACK),
)

NEW: tuple[Sign, ...] = (
    *(Sign(f"limit_{n}", "circle", RED, WHITE, f"number_{n}", BLACK) for n in ("20", "30", "50", "60", "70", "80")),
    *(
        Sign(f"warning_{glyph}", "triangle", RED, WHITE, glyph, BLACK)
        for glyph in ("bend_left", "bend_right", "crossroads", "bump", "narrows", "walker")
    ),
    *(
        Sign(f"direction_{glyph}", "circle", BLUE, BLUE, glyph, WHITE)
        for glyph in ("turn_left", "turn_right", "ahead_or_left", "ahead_or_right", "keep_left", "keep_right")
    ),
)
