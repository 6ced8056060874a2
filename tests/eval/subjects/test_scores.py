"""From pictures to means over subjects and differences in pairs, against plain numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from eval.subjects.extractors import Extractor, Extractors
from eval.subjects.interval import t_quantile
from eval.subjects.scores import (
    Measured,
    PictureScore,
    compare,
    measure,
    over_subjects,
    prompt_means,
    subject_means,
)
from eval.subjects.sets import read_sets
from tests.eval.subjects.tiny import draw, make_set


def score(adapter: str, subject: str, prompt: int, seed: int, value: float) -> PictureScore:
    return PictureScore(adapter, subject, prompt, f"prompt {prompt}", seed, Path("x.png"), {"dino": value})


def grid(adapter: str, values: np.ndarray) -> list[PictureScore]:
    """Scores of (subjects, prompts, seeds)."""
    return [score(adapter, f"s{s}", p, seed, float(value)) for (s, p, seed), value in np.ndenumerate(values)]


def test_means_and_intervals_are_over_subjects() -> None:
    values = np.random.default_rng(0).normal(0.6, 0.1, (5, 3, 4))
    scores = grid("lora", values)
    assert prompt_means(scores, "dino")["lora", "s2", "prompt 1"] == pytest.approx(values[2, 1].mean())
    assert subject_means(scores, "dino")["lora", "s4"] == pytest.approx(values[4].mean())
    found = over_subjects(scores, "dino")["lora"]
    means = values.mean((1, 2))
    assert found.mean == pytest.approx(means.mean())
    assert found.half == pytest.approx(t_quantile(0.975, 4) * means.std(ddof=1) / np.sqrt(5))
    assert found.n == 5


def test_a_subject_with_fewer_pictures_and_a_prompt_with_fewer_seeds_weigh_the_same() -> None:
    scores = [score("lora", "a", 0, 0, 1.0), score("lora", "a", 1, 0, 0.0), score("lora", "a", 1, 1, 0.0)]
    scores.append(score("lora", "b", 0, 0, 0.0))
    assert subject_means(scores, "dino")["lora", "a"] == 0.5
    assert over_subjects(scores, "dino")["lora"].mean == 0.25


def test_a_comparison_is_in_pairs_and_its_interval_over_subjects() -> None:
    rng = np.random.default_rng(1)
    subject = rng.normal(0, 0.3, (6, 1, 1))  # subjects differ far more than adapters do
    one = 0.5 + subject + rng.normal(0, 0.01, (6, 4, 2))
    other = 0.45 + subject + rng.normal(0, 0.01, (6, 4, 2))
    found = compare([*grid("a", one), *grid("b", other)], "dino", "a", "b")
    assert found is not None
    differences = (one - other).mean((1, 2))
    assert found.difference.mean == pytest.approx(differences.mean())
    assert found.difference.half == pytest.approx(t_quantile(0.975, 5) * differences.std(ddof=1) / np.sqrt(6))
    assert (found.difference.low or 0) > 0  # although the subjects' own spread is 0.3
    assert (found.over, found.pictures, found.of) == ("subjects", 48, 48)
    assert found.better == pytest.approx((one > other).mean())


def test_only_pictures_that_both_made_are_compared_and_that_is_said() -> None:
    scores = [score("a", "s", 0, 0, 0.9), score("a", "s", 0, 1, 0.1), score("b", "s", 0, 1, 0.3)]
    found = compare(scores, "dino", "a", "b")
    assert found is not None
    assert found.difference.mean == pytest.approx(-0.2)
    assert (found.pictures, found.of, found.better) == (1, 2, 0.0)
    assert compare(scores[:1] + scores[2:], "dino", "a", "b") is None


def test_with_one_subject_the_interval_is_over_its_prompts() -> None:
    one = np.array([[[0.5, 0.7], [0.4, 0.4], [0.6, 0.8]]])
    found = compare([*grid("a", one), *grid("b", one - np.array([[[0.1], [0.2], [0.3]]]))], "dino", "a", "b")
    assert found is not None
    assert found.over == "prompts"
    assert found.difference.mean == pytest.approx(0.2)
    assert found.difference.n == 3
    assert found.difference.half == pytest.approx(t_quantile(0.975, 2) * 0.1 / np.sqrt(3))


def test_ties_count_half() -> None:
    scores = [score(adapter, "s", 0, seed, 0.5) for adapter in "ab" for seed in (0, 1)]
    found = compare(scores, "dino", "a", "b")
    assert found is not None
    assert found.better == 0.5


def one_hot(images: list) -> torch.Tensor:
    """Features of reddish, greenish and bluish pictures, at right angles."""
    means = torch.tensor(np.array([np.asarray(image, float).mean((0, 1)) for image in images]))
    return torch.nn.functional.one_hot(means.argmax(1), 3).float()


@pytest.fixture
def coloured(tmp_path: Path) -> Path:
    """A set whose real pictures are red; of the generated ones three are red and one is blue."""
    from PIL import Image

    folder = make_set(tmp_path)
    for path in (tmp_path / "real" / "duck").iterdir():
        Image.new("RGB", (8, 8), (200, 0, 0)).save(path)
    for name in ("00_0.png", "00_1.png", "01_0.png"):
        Image.new("RGB", (8, 8), (200, 0, 0)).save(folder / name)
    Image.new("RGB", (8, 8), (0, 0, 200)).save(folder / "01_1.png")
    return folder


def told(texts: list[str]) -> torch.Tensor:
    """A prompt is red unless it says purple, which is blue here; a token would show as an error."""
    assert not any("zqx" in text or "{" in text for text in texts), texts
    return torch.tensor([[0.0, 0, 1] if "purple" in text else [1.0, 0, 0] for text in texts])


def test_known_features_give_known_scores(coloured: Path) -> None:
    extractors = Extractors(dino=Extractor(one_hot), clip=Extractor(one_hot), texts=told)
    measured = measure(read_sets([coloured]), extractors)
    found = {(each.index, each.seed): dict(each.values) for each in measured.scores}
    assert found == {
        (0, 0): {"dino": 1.0, "clip_i": 1.0, "clip_t": 1.0},
        (0, 1): {"dino": 1.0, "clip_i": 1.0, "clip_t": 1.0},
        (1, 0): {"dino": 1.0, "clip_i": 1.0, "clip_t": 0.0},
        (1, 1): {"dino": 0.0, "clip_i": 0.0, "clip_t": 1.0},
    }
    assert measured.real == {"duck": {"dino": 1.0, "clip_i": 1.0}}
    assert measured.expected == {"lora": 4}
    assert measured.metrics == ["dino", "clip_i", "clip_t"]


def test_an_extractor_of_ones_own_measures_alone(coloured: Path) -> None:
    measured = measure(read_sets([coloured]), Extractors(dino=Extractor(one_hot)))
    assert measured.metrics == ["dino"]
    assert over_subjects(measured.scores, "dino")["lora"].mean == 0.75


def test_unreadable_pictures_are_left_out_counted_and_named(coloured: Path) -> None:
    (coloured / "00_1.png").write_text("no picture")
    (coloured.parent.parent / "real" / "duck" / "01.png").write_bytes(b"")
    measured = measure(read_sets([coloured]), Extractors(dino=Extractor(one_hot)))
    assert [(path.name, reason) for path, reason in measured.unreadable] == [
        ("01.png", "the file is empty"),
        ("00_1.png", "not a picture in one of the formats JPEG, PNG, PPM, BMP, GIF, TIFF, WEBP"),
    ]
    assert len(measured.scores) == 3
    assert measured.expected["lora"] == 4


def test_where_no_real_or_no_generated_picture_can_be_read_nothing_is_measured(coloured: Path) -> None:
    extractors, sets = Extractors(dino=Extractor(one_hot)), read_sets([coloured])
    for path in coloured.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the generated pictures can be read.*00_0\.png: the file is empty"):
        measure(sets, extractors)
    for path in sets[0].references:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the real pictures of duck can be read"):
        measure(sets, extractors)


def test_long_prompts_are_noted_once(tmp_path: Path) -> None:
    draw(tmp_path / "unused.png", 0)
    sets = [make_set(tmp_path, adapter) for adapter in ("a", "b")]
    extractors = Extractors(clip=Extractor(one_hot), texts=told, too_long=lambda text: "purple" in text)
    measured: Measured = measure(read_sets(sets), extractors)
    assert measured.cut_texts == ["a purple toy"]
