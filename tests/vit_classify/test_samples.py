"""Which test pictures a run shows."""

import numpy as np
import pytest

from vit_classify.evaluate import Predictions
from vit_classify.samples import draw


def predictions(right: int, wrong: int) -> Predictions:
    labels = np.zeros(right + wrong, np.int64)
    predicted = labels.copy()
    predicted[right:] = 1
    return Predictions(predicted, labels, 2, np.ones(len(labels), np.float32))


@pytest.mark.parametrize(
    ("right", "wrong", "shown", "of_wrong"),
    [(75, 25, 12, 3), (100, 0, 12, 0), (0, 100, 12, 12), (999, 1, 12, 1), (3, 2, 5, 2), (1, 0, 1, 0)],
)
def test_wrong_pictures_are_shown_in_their_share(right: int, wrong: int, shown: int, of_wrong: int) -> None:
    chosen = draw(predictions(right, wrong), 12, seed=0)
    assert len(chosen) == len(set(chosen)) == shown
    assert sum(index >= right for index in chosen) == of_wrong


def test_the_seed_decides_and_nothing_else() -> None:
    assert draw(predictions(75, 25), 12, seed=1) == draw(predictions(75, 25), 12, seed=1)
    assert draw(predictions(75, 25), 12, seed=1) != draw(predictions(75, 25), 12, seed=2)
