"""The drawn world: what is drawn, what is said of it, and what the characters have that it has not."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from dreambooth.demo.architecture import RARE, WORDS
from dreambooth.demo.characters import CHARACTERS
from dreambooth.demo.draw import SIDE, draw
from dreambooth.demo.scenes import BACKGROUNDS, COLOURS, FIGURES, Look, Scene, caption, random_scene


def pixels(figure: str, look: Look, background: str, seed: int = 0) -> np.ndarray:
    return np.asarray(draw(figure, look, background, np.random.default_rng(seed)), np.int64)


@pytest.mark.parametrize(("figure", "background"), list(product(FIGURES, BACKGROUNDS)))
def test_every_figure_stands_before_every_background(figure: str, background: str) -> None:
    red, blue = (pixels(figure, Look.plain(colour), background) for colour in ("red", "blue"))
    assert red.shape == (SIDE, SIDE, 3)
    changed = (red != blue).any(-1)
    assert 0.1 < changed.mean() < 0.6, "the colour is the figure's, and the rest is the background's"
    assert (red == pixels(figure, Look.plain("red"), background)).all(), "the same generator, the same picture"


def test_markings_are_on_the_body_only() -> None:
    plain, marked = Look((120, 40, 180), (255, 150, 20)), Look((120, 40, 180), (255, 150, 20), "spots")
    before, after = (pixels("dog", look, "on the grass").astype(int) for look in (plain, marked))
    elsewhere = pixels("dog", Look((0, 0, 0), (255, 150, 20)), "on the grass")
    body = (before != elsewhere).any(-1)
    assert (before != after).any(-1).sum() > 20
    assert not ((before != after).any(-1) & ~body).any()


def test_captions_say_what_is_there_and_never_the_rare_words() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        scene = random_scene(rng)
        said = caption(scene, rng)
        words = said.split()
        assert scene.figure in words
        assert not ({*FIGURES, *COLOURS} - {scene.figure, scene.colour}) & {*words}
        assert not {*words} & {*RARE}
        assert {*words} <= {*WORDS}, "every word is one token"


def test_a_caption_leaves_out_colour_or_background_at_times() -> None:
    rng = np.random.default_rng(0)
    said = [caption(Scene("cat", "orange", "at night"), rng) for _ in range(300)]
    assert any("orange" not in each for each in said)
    assert any("at night" not in each for each in said)
    assert not any("a orange" in each for each in said)


def test_the_characters_have_colours_that_no_scene_has() -> None:
    for figure, look in CHARACTERS.values():
        assert figure in FIGURES
        for known in map(Look.plain, COLOURS):
            assert look.accent != known.accent
        assert min(np.abs(np.subtract(look.body, known)).max() for known in COLOURS.values()) > 40
