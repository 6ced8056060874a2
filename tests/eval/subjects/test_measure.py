"""DreamBooth's measures: known features, and an independent transcription."""

import numpy as np
import pytest
import torch

from eval.subjects.measure import image_similarity, real_similarity, text_similarity


def test_identical_pictures_score_one() -> None:
    features = torch.tensor([[3.0, 4.0, 0.0]])
    assert image_similarity(features.repeat(5, 1), features.repeat(3, 1)).tolist() == pytest.approx([1.0] * 5)
    assert real_similarity(features.repeat(4, 1)) == pytest.approx(1.0)
    assert text_similarity(features, 7 * features).tolist() == pytest.approx([1.0])


def test_orthogonal_features_score_zero() -> None:
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert image_similarity(x.repeat(2, 1), y.repeat(3, 1)).tolist() == [0.0, 0.0]
    assert text_similarity(x, y).tolist() == [0.0]
    assert real_similarity(torch.cat([x, y])) == pytest.approx(0.0, abs=1e-15)


def test_opposite_features_score_minus_one() -> None:
    x = torch.tensor([[1.0, -2.0]])
    assert image_similarity(x, -x).tolist() == pytest.approx([-1.0])


def transcribed(generated: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Mean cosine of each generated picture, pair by pair as the paper says it."""
    means = []
    for one in generated:
        cosines = [float(np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other)) for other in real]
        means.append(sum(cosines) / len(cosines))
    return np.array(means)


def test_means_are_those_of_all_pairs_in_float64() -> None:
    rng = np.random.default_rng(0)
    generated, real = (rng.normal(1, 1, (count, 384)).astype(np.float32) for count in (9, 5))
    found = image_similarity(torch.from_numpy(generated), torch.from_numpy(real))
    assert found.dtype == torch.float64
    # 1e-12: both in float64, sums in another order
    np.testing.assert_allclose(found.numpy(), transcribed(*(x.astype(np.float64) for x in (generated, real))), 1e-12)
    wide = real.astype(np.float64)
    pairs = [transcribed(wide[i : i + 1], wide[j : j + 1])[0] for i in range(5) for j in range(5) if i != j]
    assert real_similarity(torch.from_numpy(real)) == pytest.approx(np.mean(pairs), rel=1e-12)
    texts = rng.normal(0, 1, (9, 384))
    expected = [transcribed(generated[i : i + 1].astype(float), texts[i : i + 1])[0] for i in range(9)]
    np.testing.assert_allclose(
        text_similarity(torch.from_numpy(generated), torch.from_numpy(texts)).numpy(), expected, rtol=1e-12, atol=1e-14
    )


def test_a_single_real_picture_has_no_similarity_to_others() -> None:
    assert real_similarity(torch.ones(1, 3)) is None


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 0.0])
def test_features_that_are_no_numbers_or_all_zero_are_refused(broken: float) -> None:
    with pytest.raises(ValueError, match="finite and not all zero"):
        image_similarity(torch.full((2, 3), broken), torch.ones(2, 3))
