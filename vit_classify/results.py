"""What a measured classifier leaves on the disk, the same after training and after `mosgoat eval images`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_write
from common.reporting.plots import plot_confusion
from common.reporting.tables import Column, Row, Table, render_csv
from vit_classify.evaluate import Predictions


def write_image_results(
    directory: Path,
    predictions: Predictions,
    *,
    class_names: Sequence[str],
    pictures: Sequence[str],
    prefix: str = "",
    title: str = "",
) -> dict[str, Any]:
    """Write `<prefix>predictions.csv` and `plots/<prefix>confusion.png`; call it in the main process only.

    Args:
        directory: a run directory, or a folder of its own.
        predictions: what the classifier said about N pictures of C classes.
        class_names: C words, by label.
        pictures: N file or row names, in the order of the predictions.
        prefix: in front of the file names, so that an evaluation does not overwrite the training's files.
        title: heading of the confusion matrix.

    Returns:
        `accuracy` in [0, 1] and `per_class_accuracy`, for the section `metrics` of the results.
    """
    assert len(pictures) == len(predictions.labels), (len(pictures), len(predictions.labels))
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write(directory / f"{prefix}predictions.csv", _as_csv(predictions, class_names, pictures))
    plot_confusion(directory / "plots" / f"{prefix}confusion.png", predictions.confusion, class_names, title=title)
    return {"accuracy": predictions.top1, "per_class_accuracy": predictions.by_class(class_names)}


def _as_csv(predictions: Predictions, class_names: Sequence[str], pictures: Sequence[str]) -> str:
    columns = (pictures, predictions.labels, predictions.predicted, predictions.confidence)
    rows = (
        (name, class_names[label], class_names[predicted], f"{confidence:.4f}")
        for name, label, predicted, confidence in zip(*columns, strict=True)
    )
    return render_csv(("name", "label", "predicted", "confidence"), rows)


def worst_classes(predictions: Predictions, class_names: Sequence[str], count: int = 5) -> Table:
    """The classes with the lowest accuracy, each with the class it is most often taken for.

    Classes without pictures and classes without a mistake are left out.

    Args:
        predictions: what the classifier said.
        class_names: C words, by label.
        count: how many classes at most.
    """
    confusion = predictions.confusion
    accuracy = predictions.per_class_accuracy
    order = [int(label) for label in np.argsort(accuracy, kind="stable") if accuracy[label] < 1][:count]
    rows = []
    for label in order:
        mistakes = confusion[label].copy()
        mistakes[label] = 0
        other = int(mistakes.argmax())
        rows.append(
            Row(
                (
                    class_names[label],
                    int(confusion[label].sum()),
                    float(accuracy[label] * 100),
                    class_names[other],
                    int(mistakes[other]),
                )
            )
        )
    names = ("worst classes", "pictures", "accuracy %", "most often taken for", "times")
    return Table([Column(name, better=None) for name in names], rows)
