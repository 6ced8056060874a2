"""The shipped base: trained on what it says, rebuilt by its script, read the way the classifier reads it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vit_classify.config import ModelConfig
from vit_classify.demo import builtin_model_dir
from vit_classify.demo.classes import PRETRAINING
from vit_classify.demo.draw import draw
from vit_classify.demo.pretrain import MEAN, STD, normalise, patch_mean, pretrain, save
from vit_classify.model import VitClassifier, load_model


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _shipped() -> VitClassifier:
    return load_model(ModelConfig(name="builtin:signs-vit", head="linear"), ["a", "b"], [])


@torch.no_grad()
def _features(classifier: VitClassifier, pictures: np.ndarray) -> Tensor:
    _, tokens = classifier.tower(normalise(torch.from_numpy(pictures)))
    return tokens.mean(dim=1)


def test_shipped_base_is_small_and_says_how_it_was_made():
    files = {path.name: path.stat().st_size for path in builtin_model_dir("signs-vit").iterdir()}
    assert set(files) == {"open_clip_config.json", "open_clip_model.safetensors", "pretraining.json"}
    assert sum(files.values()) <= 4 * 2**20


def test_shipped_base_tells_its_pretraining_classes_apart():
    classifier = _shipped()
    rng = np.random.default_rng(11)  # neither the pretraining's seed nor the shipped pictures'
    known = [_features(classifier, draw(sign, 15, rng)).mean(dim=0) for sign in PRETRAINING]
    asked = torch.cat([_features(classifier, draw(sign, 5, rng)) for sign in PRETRAINING])
    nearest = torch.cdist(asked, torch.stack(known)).argmin(dim=1)
    truth = torch.arange(len(PRETRAINING)).repeat_interleave(5)
    # Nearest class mean; guessing gives 4 %. 98.7 % is what the pretraining's own head reached.
    assert (nearest == truth).float().mean() > 0.9


def test_pretraining_trains_the_features_that_the_linear_head_reads(tmp_path: Path):
    model, _ = pretrain(steps=1, batch_size=2, learning_rate=1e-3, seed=0)
    save(model, tmp_path, {})
    classifier = load_model(ModelConfig(name=f"local-dir:{tmp_path}", head="linear"), ["a", "b"], [])
    pictures = draw(PRETRAINING[0], 2, np.random.default_rng(0))
    with torch.no_grad():
        pretrained = patch_mean(model.eval().visual, normalise(torch.from_numpy(pictures)))
    # The file holds float16: eleven bits of every weight, through four blocks.
    torch.testing.assert_close(_features(classifier, pictures), pretrained, rtol=0.02, atol=0.02)


def test_classifier_normalises_as_the_pretraining_did():
    classifier = _shipped()
    assert classifier.image_size == 32
    assert classifier.mean == pytest.approx(MEAN)
    assert classifier.std == pytest.approx(STD)
    black = normalise(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert black.shape == (1, 3, 32, 32)
    torch.testing.assert_close(black[0, 0, 0, 0], torch.tensor(-MEAN[0] / STD[0]))


def test_pretraining_is_a_function_of_its_seed():
    first, again, other = (
        pretrain(steps=1, batch_size=2, learning_rate=1e-3, seed=seed)[0].visual.conv1.weight for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
