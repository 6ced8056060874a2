"""Drawn scenes of the llava demo: up to four shapes in the quarters of a picture, what they are called, what is asked.

A share of the pairs (colour, shape) is held out: the base and the training set never see them, and every test
question is about one. So a right answer was read off the picture and not remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
PLACES = ("top left", "top right", "bottom left", "bottom right")
COUNTS = ("one", "two", "three", "four")
KINDS = ("colour", "shape", "count", "position")

Pair = tuple[str, str]
# A Latin pattern: every colour and every shape is met in training, these pairs never are.
HELD_OUT: frozenset[Pair] = frozenset((COLOURS[(2 * i + 3) % 8], shape) for i, shape in enumerate(SHAPES)) | frozenset(
    (COLOURS[(2 * i + 6) % 8], shape) for i, shape in enumerate(SHAPES)
)
SEEN: tuple[Pair, ...] = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT)


@dataclass(frozen=True)
class Thing:
    """One drawn object.

    Args:
        place: one of `PLACES`.
        colour: one of `COLOURS`.
        shape: one of `SHAPES`.
    """

    place: str
    colour: str
    shape: str

    def __str__(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape} at the {self.place}"


@dataclass(frozen=True)
class Question:
    """One question with four options.

    Args:
        kind: one of `KINDS`.
        text: as a user would ask.
        options: four answers.
        answer: the right one of them.
    """

    kind: str
    text: str
    options: tuple[str, ...]
    answer: str


def random_scene(rng: np.random.Generator, held_out: bool = False) -> tuple[Thing, ...]:
    """One to four things in different places, the places in reading order.

    Args:
        rng: draws the scene.
        held_out: whether exactly one of the things is a held-out pair; none is otherwise.
    """
    count = int(rng.integers(1, 5))
    places = sorted(rng.permutation(4)[:count].tolist())
    pairs: list[Pair] = [SEEN[i] for i in rng.permutation(len(SEEN))[:count]]
    if held_out:
        pairs[int(rng.integers(count))] = sorted(HELD_OUT)[int(rng.integers(len(HELD_OUT)))]
    return tuple(Thing(PLACES[place], *pair) for place, pair in zip(places, pairs, strict=True))


def caption(scene: Sequence[Thing]) -> str:
    """What is there, in reading order."""
    return "there is " + " and ".join(map(str, scene)) + "."


def ask(scene: Sequence[Thing], kind: str, rng: np.random.Generator) -> Question | None:
    """A question of the given kind about a scene, about its held-out thing where it has one.

    Args:
        scene: the things.
        kind: one of `KINDS`.
        rng: draws which thing is asked about and the wrong options.

    Returns:
        None where the question would have no single answer.
    """
    special = [thing for thing in scene if (thing.colour, thing.shape) in HELD_OUT]
    thing = (special or list(scene))[int(rng.integers(len(special or scene)))]
    if kind == "count":
        return Question(kind, "How many things are there?", COUNTS, COUNTS[len(scene) - 1])
    if kind == "position":
        if sum((other.colour, other.shape) == (thing.colour, thing.shape) for other in scene) > 1:
            return None
        return Question(kind, f"Where is the {thing.colour} {thing.shape}?", PLACES, thing.place)
    if kind == "colour":
        if sum(other.shape == thing.shape for other in scene) > 1:
            return None
        return Question(kind, f"What colour is the {thing.shape}?", _options(thing.colour, COLOURS, rng), thing.colour)
    assert kind == "shape", kind
    if sum(other.colour == thing.colour for other in scene) > 1:
        return None
    return Question(kind, f"What shape is {thing.colour}?", _options(thing.shape, SHAPES, rng), thing.shape)


def _options(answer: str, words: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    wrong = [word for word in words if word != answer]
    chosen = [answer, *(wrong[i] for i in rng.permutation(len(wrong))[:3])]
    return tuple(chosen[i] for i in rng.permutation(4))
