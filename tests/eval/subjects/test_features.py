"""Features of files: the cache, batches, and files that cannot be read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from eval.subjects.extractors import Extractor
from eval.subjects.features import Found, features_of, open_caches
from tests.eval.subjects.tiny import draw


class Mean:
    """The mean colour as features, which counts its work."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        self.seen += len(images)
        return torch.tensor(np.array([np.asarray(image).mean((0, 1)) for image in images]), dtype=torch.float32)


def cached(paths: list[Path], extractor: Extractor, folder: Path, batch_size: int = 32) -> Found:
    """Features with a cache that is read from its folder, as another process would."""
    extractors = {"mean": extractor}
    return features_of(paths, extractors, caches=open_caches(extractors, folder), batch_size=batch_size)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return [draw(tmp_path / f"{number}.png", number) for number in range(5)]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_batches_change_nothing(pictures: list[Path], batch_size: int) -> None:
    whole = features_of(pictures, {"mean": Extractor(Mean())}).features["mean"]
    found = features_of(pictures, {"mean": Extractor(Mean())}, batch_size=batch_size).features["mean"]
    assert list(found) == pictures
    for path in pictures:
        assert found[path].equal(whole[path])


def test_features_are_worked_out_once_whatever_the_file_is_called(pictures: list[Path], tmp_path: Path) -> None:
    first, second = Mean(), Mean()
    before = cached(pictures, Extractor(first, "a"), tmp_path / "cache")
    moved = pictures[0].rename(tmp_path / "moved.png")
    after = cached([moved, *pictures[1:]], Extractor(second, "a"), tmp_path / "cache")
    assert (first.seen, second.seen) == (5, 0)
    assert after.features["mean"][moved].equal(before.features["mean"][pictures[0]])


def test_changed_pictures_and_other_weights_never_meet_old_features(pictures: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cached(pictures, Extractor(Mean(), "a"), cache)
    other, again = Mean(), Mean()
    cached(pictures, Extractor(other, "b"), cache)
    assert other.seen == 5
    draw(pictures[0], 77)
    found = cached(pictures, Extractor(again, "a"), cache)
    assert again.seen == 1
    assert found.features["mean"][pictures[0]].equal(Mean()([Image.open(pictures[0])])[0])


def test_an_extractor_without_a_fingerprint_is_not_cached(pictures: list[Path], tmp_path: Path) -> None:
    extractor = Mean()
    for _ in range(2):
        cached(pictures, Extractor(extractor), tmp_path / "cache")
    assert extractor.seen == 10
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_is_made_anew(pictures: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    whole = cached(pictures, Extractor(Mean(), "a"), cache, batch_size=2)
    for file in (cache / "a").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    extractor = Mean()
    found = cached(pictures, Extractor(extractor, "a"), cache)
    assert extractor.seen == 5
    assert all(found.features["mean"][path].equal(whole.features["mean"][path]) for path in pictures)


def test_what_cannot_be_read_is_named_with_the_reason(pictures: list[Path], tmp_path: Path) -> None:
    pictures[1].write_bytes(pictures[1].read_bytes()[:60])
    pictures[2].write_text("no picture")
    gone = tmp_path / "gone.png"
    found = cached([*pictures, gone], Extractor(Mean(), "a"), tmp_path / "cache")
    assert set(found.unreadable) == {pictures[1], pictures[2], gone}
    assert "not a picture" in found.unreadable[pictures[2]]
    assert "No such file" in found.unreadable[gone]
    assert list(found.features["mean"]) == [pictures[0], pictures[3], pictures[4]]
