"""Some test pictures with what a trained classifier called them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from common.reporting.samples import Sample, Samples
from vit_classify.data import Split
from vit_classify.evaluate import Predictions

SHOWN = 12


def labelled_pictures(split: Split, predictions: Predictions, class_names: Sequence[str], *, seed: int) -> Samples:
    """Pictures drawn by lot, the wrong ones in the share that they have of all.

    Args:
        split: what was measured.
        predictions: of the N pictures of `split`.
        class_names: C words, by label.
        seed: of the lot.
    """
    chosen = draw(predictions, SHOWN, seed)
    right = predictions.predicted == predictions.labels  # (N,)
    items = [
        Sample(
            Image.fromarray(np.ascontiguousarray(split.store.image(index))),
            answer=class_names[predictions.predicted[index]],
            expected=class_names[predictions.labels[index]],
            right=bool(right[index]),
        )
        for index in chosen
    ]
    wrong = int((~right[chosen]).sum())
    about = (
        f"{len(items)} of the {len(split):,} test pictures, drawn by lot (seed {seed}), {wrong} of them wrong: of all "
        f"test pictures {1 - predictions.top1:.1%} are."
    )
    return Samples("labels", about, items)


def draw(predictions: Predictions, count: int, seed: int) -> list[int]:
    """At most `count` of the pictures in random order; of the wrong ones their share, and one where there is any."""
    right = predictions.predicted == predictions.labels
    sure, wrong = np.flatnonzero(right), np.flatnonzero(~right)
    total = min(count, len(right))
    share = round(total * len(wrong) / max(1, len(right)))
    of_wrong = min(len(wrong), max(share, 1))
    generator = np.random.default_rng(seed)
    picked = [
        *generator.permutation(wrong)[:of_wrong].tolist(),
        *generator.permutation(sure)[: total - of_wrong].tolist(),
    ]
    return [int(index) for index in generator.permutation(picked)]
