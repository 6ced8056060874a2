"""`builtin:drawn-encoder` in the places of DINO and CLIP: what it sees, and that it never passes for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.cli import main as mosgoat
from common.errors import UserError
from dreambooth.demo.characters import CHARACTERS
from dreambooth.demo.draw import draw
from dreambooth.demo.scenes import BACKGROUNDS, FIGURES, Look
from dreambooth.manifest import Manifest, PictureEntry, picture_name, write_manifest
from eval.subjects.drawn import ENCODER, drawn_clip, text_content, with_drawn_dino
from eval.subjects.extractors import Extractors
from eval.subjects.measure import image_similarity, text_similarity

CAT, OTHER = CHARACTERS["violet_cat"][1], Look.plain("green")
SNOW, NIGHT = BACKGROUNDS[0], BACKGROUNDS[-1]


def picture(figure: str, look: Look, background: str, seed: int = 0) -> Image.Image:
    return draw(figure, look, background, np.random.default_rng(seed))


def test_identity_is_near_for_one_character_in_two_places_and_far_for_two_in_one() -> None:
    dino = with_drawn_dino(Extractors()).dino
    assert dino is not None
    real = dino.features([picture("cat", CAT, SNOW, 1), picture("cat", CAT, BACKGROUNDS[1], 2)])
    made = dino.features([picture("cat", CAT, NIGHT), picture("cat", OTHER, SNOW)])
    same, other = image_similarity(made, real).tolist()
    assert same > 0.8
    assert other < 0.5


def test_content_is_what_is_shown_and_what_the_prompt_names() -> None:
    clip = drawn_clip()
    assert clip.clip is not None
    assert clip.texts is not None
    shown = clip.clip.features([picture("cat", CAT, SNOW), picture("dog", CAT, SNOW), picture("dog", CAT, NIGHT)])
    found = text_similarity(shown, clip.texts([f"a cat {SNOW}"] * 3)).tolist()
    # the mean of figure and background: both right, one of them, none
    assert found[0] > 0.9
    assert 0.4 < found[1] < 0.6
    assert found[2] < 0.1


def test_every_figure_and_background_is_read_out_of_a_prompt() -> None:
    prompts = [f"a photo of a {figure} {background}" for figure in FIGURES for background in BACKGROUNDS]
    rows = text_content(prompts)
    assert rows.shape == (len(FIGURES) * len(BACKGROUNDS), len(FIGURES) + len(BACKGROUNDS))
    assert torch.equal(rows.sum(1), torch.full((len(prompts),), 2.0))
    assert len(torch.unique(rows, dim=0)) == len(prompts)


@pytest.mark.parametrize("text", ["a vase in the snow", "a cat", "a cat and a dog at night", "a category at night"])
def test_a_prompt_of_another_world_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match=f"{ENCODER} cannot read the prompt.*must name one (figure|background) of"):
        text_content([text])


def make_pictures(root: Path) -> Path:
    """Pictures of a base that draws another cat, and of an adapter that draws the character."""
    dataset = root / "real"
    dataset.mkdir(parents=True)
    for number, place in enumerate(BACKGROUNDS[:3]):
        picture("cat", CAT, place, number).save(dataset / f"{number}.png")
    prompts = tuple(f"a {{token}} {{class}} {place}" for place in (SNOW, NIGHT))
    for adapter, look in (("base", OTHER), ("moslora", CAT)):
        folder = root / "pictures" / adapter / "violet_cat"
        folder.mkdir(parents=True)
        pictures = {}
        for number, place in enumerate((SNOW, NIGHT)):
            name = picture_name(number, 0)
            picture("cat", look, place, 7 + number).save(folder / name)
            pictures[name] = PictureEntry(number, 0, "test")
        real = tuple(str(path) for path in sorted(dataset.glob("*.png")))
        manifest = Manifest(
            adapter=adapter,
            subject="violet_cat",
            class_word="cat",
            token="ikat",
            prompts=prompts,
            seeds=(0,),
            references=real,
            pictures=pictures,
        )
        write_manifest(folder, manifest)
    return root / "pictures"


@pytest.mark.slow
def test_the_real_command_measures_with_it_and_sets_nothing_published_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSGOAT_CACHE", str(tmp_path / "cache"))
    words = ["eval", "subjects", "--generated", str(make_pictures(tmp_path)), "--output", str(tmp_path / "o")]
    assert mosgoat([*words, "--dino", ENCODER, "--clip", ENCODER]) == 0
    content = json.loads((tmp_path / "o" / "results.json").read_text())
    assert content["models"] == {"dino": ENCODER, "clip": ENCODER}
    assert content["labels"] == {"dino": "drawn identity", "clip_i": "drawn content", "clip_t": "content asked for"}
    assert "Not comparable with figures of DINO and CLIP" in content["about"]
    means = {name: each["metrics"]["dino"]["mean"] for name, each in content["adapters"].items()}
    assert means["moslora"] > means["base"] + 0.3
    printed = capsys.readouterr().out
    assert ENCODER in printed
    assert "drawn identity" in printed
    for words_of_the_paper in ("published", "2208.12242", "CLIP-T  ", "DreamBooth (Stable Diffusion)"):
        assert words_of_the_paper not in printed

    assert mosgoat([*words, "--dino", "builtin:drawn-encode"]) == 2
    assert "builtin:drawn-encode does not ship with mosgoat; did you mean drawn-encoder?" in capsys.readouterr().err
