"""Draw the scenes, and write them with captions or questions in LLaVA's own JSON schema.

    python -m llava.demo.draw --output DIR

Everything is computed from polygons; the same seed gives the same bytes on every machine with the same Pillow.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from common.files import atomic_write
from llava.demo.scenes import KINDS, PLACES, Question, Thing, ask, caption, random_scene

SIDE = 64
_FINE = 4  # drawn so much larger and averaged down, which smooths the edges
_RGB = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (40, 80, 220),
    "yellow": (245, 210, 40),
    "purple": (140, 50, 170),
    "orange": (245, 135, 25),
    "white": (248, 248, 248),
    "black": (18, 18, 18),
}
CAPTION_REQUEST = "Describe the picture."
TRAIN, TEST = 2400, 400
SEED = 20


def draw(scene: Sequence[Thing], rng: np.random.Generator) -> Image.Image:
    """A picture of a scene, `SIDE` pixels wide and high, RGB; sizes, places, tilts and the ground vary."""
    side = SIDE * _FINE
    ground = tuple(int(v) for v in rng.integers(105, 155, 3))
    picture = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(picture)
    for thing in scene:
        row, column = divmod(PLACES.index(thing.place), 2)
        radius = side * rng.uniform(0.13, 0.19)
        x, y = ((0.25 + 0.5 * at) * side + side * rng.uniform(-0.04, 0.04) for at in (column, row))
        _shape(pen, thing.shape, x, y, radius, rng.uniform(-0.3, 0.3), _RGB[thing.colour], ground)
    small = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    noisy = np.asarray(small, dtype=np.float32) + rng.normal(0, 4, (SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _shape(
    pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, tilt: float, colour: Any, ground: Any
) -> None:
    def around(radii: Sequence[float], turn: float = 0.0) -> list[tuple[float, float]]:
        angles = [tilt + turn + 2 * math.pi * i / len(radii) for i in range(len(radii))]
        return [
            (x + radius * r * math.sin(a), y - radius * r * math.cos(a)) for r, a in zip(radii, angles, strict=True)
        ]

    box = (x - radius, y - radius, x + radius, y + radius)
    if shape in ("circle", "ring"):
        pen.ellipse(box, fill=colour)
        if shape == "ring":
            hole = radius * 0.55
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=ground)
    elif shape == "square":
        pen.polygon(around([1.1] * 4, math.pi / 4), fill=colour)
    elif shape == "triangle":
        pen.polygon(around([1.2] * 3), fill=colour)
    elif shape == "star":
        pen.polygon(around([1.2, 0.45] * 5), fill=colour)
    else:
        assert shape == "cross", shape
        corner = math.atan2(0.35, 1.1)
        for turn in (0.0, math.pi / 2):
            angles = [turn + tilt + s for s in (corner, math.pi - corner, math.pi + corner, -corner)]
            reach = radius * math.hypot(0.35, 1.1)
            pen.polygon([(x + reach * math.sin(a), y - reach * math.cos(a)) for a in angles], fill=colour)


def questions(count: int, seed: int, held_out: bool) -> list[tuple[tuple[Thing, ...], Question]]:
    """Scenes, each with one question; the kinds take turns.

    Args:
        count: how many.
        seed: draws them.
        held_out: whether every question is about a held-out pair (a scene of such questions has one).
    """
    rng = np.random.default_rng(seed)
    found: list[tuple[tuple[Thing, ...], Question]] = []
    while len(found) < count:
        scene = random_scene(rng, held_out)
        question = ask(scene, KINDS[len(found) % len(KINDS)], rng)
        if question is not None:
            found.append((scene, question))
    return found


def write_sets(directory: Path, train: int = TRAIN, test: int = TEST, seed: int = SEED) -> None:
    """Write `train.json` and `test.json` in LLaVA's schema, `questions.jsonl` with the test's options, and pictures.

    `done.json` is written last: a folder with it is whole.
    """
    for part, (name, count, held_out) in enumerate((("train", train, False), ("test", test, True))):
        rng = np.random.default_rng([seed, part])
        samples, asked = [], []
        for i, (scene, question) in enumerate(questions(count, seed + part, held_out)):
            place = f"{name}/{i:05d}.png"
            (directory / name).mkdir(parents=True, exist_ok=True)
            draw(scene, rng).save(directory / place)
            samples.append(_sample(f"{name}-{i:05d}", place, question.text, question.answer))
            asked.append({**vars(question), "id": f"{name}-{i:05d}", "image": place, "caption": caption(scene)})
        atomic_write(directory / f"{name}.json", json.dumps(samples, indent=0) + "\n")
        if held_out:
            atomic_write(directory / "questions.jsonl", "".join(json.dumps(each) + "\n" for each in asked))
    atomic_write(directory / "done.json", json.dumps({"train": train, "test": test, "seed": seed}) + "\n")


def _sample(identity: str, image: str, question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": identity, "image": image, "conversations": turns}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the sets into a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    write_sets(options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
