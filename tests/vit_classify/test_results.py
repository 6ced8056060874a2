"""The files that training and evaluation leave."""

import csv
from pathlib import Path

import numpy as np
import pytest

from vit_classify.evaluate import Predictions
from vit_classify.results import worst_classes, write_image_results

NAMES = ["cat, black", "dog", 'bird "big"']
PREDICTIONS = Predictions(
    predicted=np.array([0, 0, 1, 1, 0, 2]),
    labels=np.array([0, 0, 1, 1, 1, 2]),
    num_classes=3,
    confidence=np.array([0.9, 0.8, 0.7, 0.6, 0.51234, 1.0], dtype=np.float32),
)


def test_names_with_commas_and_quotes_come_back_whole(tmp_path: Path) -> None:
    pictures = [f"a,b/{index}\n.png" for index in range(6)]
    write_image_results(tmp_path, PREDICTIONS, class_names=NAMES, pictures=pictures)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == pictures
    assert lines[4] == {"name": pictures[4], "label": "dog", "predicted": "cat, black", "confidence": "0.5123"}


def test_metrics_are_those_of_the_predictions(tmp_path: Path) -> None:
    metrics = write_image_results(tmp_path, PREDICTIONS, class_names=NAMES, pictures=list("abcdef"), prefix="x_")
    assert metrics["accuracy"] == pytest.approx(5 / 6)
    assert metrics["per_class_accuracy"] == pytest.approx({"cat, black": 1.0, "dog": 2 / 3, 'bird "big"': 1.0})
    assert {path.name for path in tmp_path.iterdir()} == {"x_predictions.csv", "plots"}


def test_a_picture_without_a_name_is_our_bug(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        write_image_results(tmp_path, PREDICTIONS, class_names=NAMES, pictures=["only one"])


def test_the_worst_classes_come_first_with_what_they_are_taken_for() -> None:
    labels = np.repeat([0, 1, 2], 4)
    predicted = np.array([0, 0, 0, 0, 1, 2, 2, 0, 2, 2, 2, 1])
    table = worst_classes(Predictions(predicted, labels, 3, np.ones(12)), ["a", "b", "c"])
    assert [row.values for row in table.rows] == [("b", 4, 25.0, "c", 2), ("c", 4, 75.0, "b", 1)]


def test_no_more_classes_are_shown_than_asked_for_and_empty_ones_never() -> None:
    predictions = Predictions(np.array([1, 0]), np.array([0, 1]), 3, np.ones(2))
    assert len(worst_classes(predictions, ["a", "b", "empty"]).rows) == 2
    assert len(worst_classes(predictions, ["a", "b", "empty"], count=1).rows) == 1
