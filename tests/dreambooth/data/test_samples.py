"""Samples are a function of (epoch, index), and batches what `Collate` says."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from dreambooth.config import PriorConfig, TextEncoderConfig, TrainConfig
from dreambooth.data import Collate, SubjectSamples, open_data
from dreambooth.model import SdxlBase
from tests.dreambooth.data.conftest import Recipe, drawn

TRAIN = TrainConfig(max_steps=500, batch_size=4)


@pytest.fixture
def class_folder(tmp_path: Path) -> str:
    """Seven class pictures of the user's own, so that none is generated."""
    place = tmp_path / "class"
    place.mkdir()
    for i in range(7):
        drawn(20 + i, 30, seed=90 + i).save(place / f"{i}.png")
    return str(place)


@pytest.fixture
def paired(base: SdxlBase, recipe: Recipe, class_folder: str) -> SubjectSamples:
    prior = PriorConfig(weight=1.0, pictures=7, path=class_folder)
    return open_data(base, recipe(prior=prior, train=TRAIN, crop="random", flip=True)).samples


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_sample_depends_on_its_key_alone(base: SdxlBase, recipe: Recipe) -> None:
    settings = recipe(train=TRAIN, crop="random", flip=True)
    first, second = (open_data(base, settings).samples for _ in range(2))
    keys = [(epoch, index) for epoch in range(3) for index in range(len(first))]
    whole = [first[key] for key in keys]
    assert all(same(sample, second[key]) for key, sample in reversed(list(zip(keys, whole, strict=True))))


def test_an_epoch_is_whole_batches_and_every_picture_equally_often(base: SdxlBase, recipe: Recipe) -> None:
    samples = open_data(base, recipe(train=TRAIN)).samples
    assert len(samples) == 20  # five pictures, batches of 4: five steps of a true 4 and none of 1
    seen = Counter(tuple(samples[(0, i)]["mean"].flatten().tolist()) for i in range(20))
    assert sorted(seen.values()) == [4, 4, 4, 4, 4]
    with pytest.raises(IndexError):
        samples[(0, 20)]


def test_variants_of_a_picture_take_turns(base: SdxlBase, recipe: Recipe) -> None:
    samples = open_data(base, recipe(train=TrainConfig(max_steps=9, batch_size=5), flip=True)).samples
    assert len(samples) == 5
    for index in range(5):
        seen = [samples[(epoch, index)]["mean"] for epoch in range(4)]
        assert not torch.equal(seen[0], seen[1])
        assert torch.equal(seen[0], seen[2])
        assert torch.equal(seen[1], seen[3])


def test_noise_seeds_are_all_different(paired: SubjectSamples) -> None:
    seeds = [
        paired[(epoch, index)][name].item()
        for epoch in range(20)
        for index in range(20)
        for name in ("noise_seed", "class_noise_seed")
    ]
    assert len(set(seeds)) == len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert 0.4 < sum(seed > 2**62 for seed in seeds) / 800 < 0.6  # of all 63 bits


def test_another_seed_is_other_noise(base: SdxlBase, recipe: Recipe) -> None:
    one, other = (open_data(base, recipe(train=TRAIN, seed=seed)).samples[(0, 0)] for seed in (0, 1))
    assert torch.equal(one["mean"], other["mean"])
    assert one["noise_seed"] != other["noise_seed"]


def test_all_class_pictures_come_once_before_one_comes_again(paired: SubjectSamples) -> None:
    seen = [tuple(paired[divmod(place, len(paired))]["class_mean"].flatten().tolist()) for place in range(7 * 10)]
    rounds = [seen[first : first + 7] for first in range(0, 70, 7)]
    assert all(len(set(each)) == 7 for each in rounds)
    assert len({tuple(each) for each in rounds}) > 5  # in another order


def test_a_class_picture_keeps_its_own_size_and_crop(paired: SubjectSamples) -> None:
    sizes = {tuple(paired[(0, index)]["class_time_ids"][:2].tolist()) for index in range(20)}
    assert sizes == {(30.0, 20.0 + i) for i in range(7)}
    subject = {tuple(paired[(0, index)]["time_ids"][:2].tolist()) for index in range(20)}
    assert subject == {(24.0, 40.0), (40.0, 24.0), (32.0, 32.0), (24.0, 48.0), (20.0, 20.0)}


def test_class_pictures_stand_behind_their_own_prompt(
    base: SdxlBase, recipe: Recipe, class_folder: str, paired: SubjectSamples
) -> None:
    """The published script's fault: with a batch above 1 it puts class prompts beside subject latents."""
    samples = [paired[(0, index)] for index in range(4)]
    batch = Collate()(samples)
    plain = open_data(base, recipe(train=TRAIN, prompt="a photo of {class}")).samples[(0, 0)]
    for i, sample in enumerate(samples):
        for name in ("mean", "std", "time_ids", "embeds", "pooled", "noise_seed"):
            assert torch.equal(batch[name][i], sample[name])
            assert torch.equal(batch[name][4 + i], sample[f"class_{name}"])
        # 1e-5: encoded beside another prompt
        torch.testing.assert_close(batch["embeds"][4 + i], plain["embeds"], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(batch["embeds"][i], plain["embeds"], atol=1e-2)


def test_a_batch_is_what_collate_says(paired: SubjectSamples, base: SdxlBase, recipe: Recipe) -> None:
    batch = Collate()([paired[(0, index)] for index in range(3)])
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "mean": ((6, 4, 8, 8), torch.float32),
        "std": ((6, 4, 8, 8), torch.float32),
        "time_ids": ((6, 6), torch.float32),
        "embeds": ((6, 77, 32), torch.float32),
        "pooled": ((6, 16), torch.float32),
        "noise_seed": ((6,), torch.int64),
        "labels": ((3,), torch.int64),
    }
    assert batch["labels"].tolist() == [0, 0, 0]
    alone = open_data(base, recipe(train=TRAIN)).samples
    assert len(Collate()([alone[(0, index)] for index in range(3)])["mean"]) == 3


def test_trained_text_encoders_get_tokens(base: SdxlBase, recipe: Recipe) -> None:
    settings = recipe(train=TRAIN, text_encoder=TextEncoderConfig(train=True))
    batch = Collate()([open_data(base, settings).samples[(0, 0)]])
    assert "embeds" not in batch
    for name, tokenizer in zip(("input_ids_1", "input_ids_2"), base.tokenizers, strict=True):
        expected = tokenizer("a photo of ikat robot", padding="max_length", max_length=77, return_tensors="pt")
        assert torch.equal(batch[name], expected.input_ids)
