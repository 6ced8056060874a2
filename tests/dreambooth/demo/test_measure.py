"""The demo's measure: what the network sees, and that it is DreamBooth's measure as `eval subjects` takes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth.demo.characters import CHARACTERS
from dreambooth.demo.draw import draw
from dreambooth.demo.encoder import load_encoder
from dreambooth.demo.measure import Measured, Shown, gains, measure, real_similarity
from dreambooth.demo.scenes import BACKGROUNDS, FIGURES, Look
from dreambooth.manifest import Manifest, PictureEntry, write_manifest
from eval.subjects.extractors import Extractor, Extractors
from eval.subjects.scores import measure as eval_measure
from eval.subjects.scores import over_subjects
from eval.subjects.sets import read_sets


def album(figure: str, look: Look, seed: int) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [draw(figure, look, background, rng) for background in BACKGROUNDS]


def test_a_character_is_near_itself_and_far_from_others_whatever_the_background() -> None:
    encoder = load_encoder()
    sets = [album(figure, look, seed) for seed, (figure, look) in enumerate(CHARACTERS.values())]
    sets += [album(figure, Look.plain("red"), 10 + seed) for seed, (figure, _) in enumerate(CHARACTERS.values())]
    features = torch.stack([encoder.features(pictures) for pictures in sets])  # (6, 6, D)
    near = torch.einsum("apd,bqd->abpq", features, features).mean((2, 3))
    assert near.diagonal().min() > 0.8
    assert (near - 2 * torch.eye(len(sets))).max() < 0.7


def test_the_network_names_figure_and_background() -> None:
    encoder = load_encoder()
    for figure in FIGURES:
        said = encoder.read(album(figure, Look.plain("green"), 3))
        assert (said.figure.argmax(1) == FIGURES.index(figure)).float().mean() >= 0.8
        assert said.background.argmax(1).tolist() == list(range(len(BACKGROUNDS)))


def written(folder: Path, adapter: str, figure: str, look: Look, references: list[str]) -> Path:
    """A folder as `mosgoat dreambooth generate` leaves it, of drawn pictures."""
    folder.mkdir(parents=True)
    entries = {}
    for i, picture in enumerate(album(figure, look, 5)):
        picture.save(folder / f"{i:02}_0.png")
        entries[f"{i:02}_0.png"] = PictureEntry(i, 0)
    prompts = tuple(f"a {{token}} {{class}} {place}" for place in BACKGROUNDS)
    write_manifest(
        folder, Manifest(adapter, "violet_cat", "cat", "ikat", prompts, (0,), tuple(references), pictures=entries)
    )
    return folder


def test_the_demo_measures_what_eval_subjects_measures_with_the_same_features(tmp_path: Path) -> None:
    encoder = load_encoder()
    figure, look = CHARACTERS["violet_cat"]
    references = []
    for i, picture in enumerate(album(figure, look, 6)):
        picture.save(tmp_path / f"{i}.png")
        references.append(str(tmp_path / f"{i}.png"))
    folders = {
        "same": written(tmp_path / "out" / "same" / "violet_cat", "same", figure, look, references),
        "other": written(tmp_path / "out" / "other" / "violet_cat", "other", "dog", Look.plain("blue"), references),
    }
    ours = {name: measure(folder, encoder) for name, folder in folders.items()}
    theirs = eval_measure(read_sets([tmp_path / "out"]), Extractors(dino=Extractor(encoder.features)))
    means = over_subjects(theirs.scores, "dino")
    for name, each in ours.items():
        assert each.similarity == pytest.approx(means[name].mean, abs=1e-5)  # float32 against their float64
    assert real_similarity([Path(path) for path in references], encoder) == pytest.approx(
        theirs.real["violet_cat"]["dino"], abs=1e-5
    )
    assert ours["same"].figure == ours["same"].background == 1
    assert ours["other"].figure == 0


def test_gains_are_against_the_base() -> None:
    def of(adapter: str, *values: float) -> Measured:
        return Measured(adapter, [Shown(0, i, value, True, None) for i, value in enumerate(values)])

    measured = {"base": of("base", 0.1, 0.3), "moslora": of("moslora", 0.7, 0.9)}
    assert gains(measured) == {"moslora": pytest.approx(0.6)}
    assert measured["base"].background is None
