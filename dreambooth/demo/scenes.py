"""The drawn world of the dreambooth demo: what it shows, and in what words.

A scene is one figure before one background. Figures of the world have one colour, and parts in a lighter or darker
shade of it. The characters of `dreambooth.demo.builtin` have two colours, markings and tones that no scene has, so
whatever a model shows of them was learnt from their pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Rgb = tuple[int, int, int]

FIGURES = ("cat", "dog", "bird", "fish", "car", "house")
COLOURS: dict[str, Rgb] = {
    "red": (205, 38, 38),
    "orange": (240, 130, 30),
    "yellow": (245, 215, 50),
    "green": (60, 165, 60),
    "blue": (45, 90, 215),
    "pink": (245, 140, 185),
    "white": (240, 240, 240),
    "black": (32, 32, 34),
}
BACKGROUNDS = (
    "in the snow",
    "on the beach",
    "on the grass",
    "in the jungle",
    "with a city in the background",
    "at night",
)
# `{}` is the figure with its colour, where one is named; "" and the background follow
OPENINGS = ("a photo of a {}", "a photo of {}", "a picture of a {}", "a drawing of a {}", "a {}", "{}")


@dataclass(frozen=True)
class Look:
    """How a figure is coloured.

    Args:
        body: colour of the larger part.
        accent: colour of belly, ears, wing, roof, wheels' hubs.
        markings: what is painted over the body, in the colour of the accent.
    """

    body: Rgb
    accent: Rgb
    markings: str = "none"

    @classmethod
    def plain(cls, colour: str) -> Look:
        """One colour and a shade of it: lighter for the dark ones, darker for the light ones."""
        body = COLOURS[colour]
        other = 255 if sum(body) < 500 else 0
        return cls(body, tuple(round(0.7 * v + 0.3 * other) for v in body))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Scene:
    """One figure before one background.

    Args:
        figure: one of `FIGURES`.
        colour: one of `COLOURS`.
        background: one of `BACKGROUNDS`.
    """

    figure: str
    colour: str
    background: str


def random_scene(rng: np.random.Generator) -> Scene:
    """Figure, colour and background, each evenly and independently."""
    figure, background = (names[int(rng.integers(len(names)))] for names in (FIGURES, BACKGROUNDS))
    return Scene(figure, list(COLOURS)[int(rng.integers(len(COLOURS)))], background)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A sentence about a scene; at times it leaves out the colour or the background, never the figure."""
    named = scene.figure if rng.random() < 0.25 else f"{scene.colour} {scene.figure}"
    text = OPENINGS[int(rng.integers(len(OPENINGS)))].format(named)
    text = text.replace("a orange", "an orange")
    return text if rng.random() < 0.2 else f"{text} {scene.background}"
