"""A picture of test pictures with what each method said about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from common.reporting.labels import method_label
from vit_classify.demo.measure import MethodRuns

RIGHT, WRONG = "#006B4E", "#B34700"  # dark green and orange, which a colour-blind reader can tell apart
PER_ROW = 6


def first_of_each_class(labels: Sequence[str]) -> list[int]:
    """Index of the first picture of every class: a choice that no result can have influenced."""
    return list({name: index for index, name in reversed(list(enumerate(labels)))}.values())[::-1]


def plot_samples(path: Path, methods: Sequence[MethodRuns], data: Path) -> Path:
    """Draw the first test picture of each class and, below it, each method's answer with its first seed.

    Args:
        path: PNG file to write.
        methods: finished runs, measured on the same pictures.
        data: folder of the data set, in which the pictures' names are looked up.

    Returns:
        `path`.
    """
    first = methods[0]
    chosen = first_of_each_class(first.labels.tolist())
    rows = -(-len(chosen) // PER_ROW)
    figure = Figure(figsize=(12.5, rows * (1.55 + 0.17 * len(methods))), layout="constrained")
    for axes, index in zip(figure.subplots(rows, PER_ROW, squeeze=False).flat, chosen, strict=False):
        with Image.open(data / first.pictures[index]) as picture:
            axes.imshow(np.asarray(picture.convert("RGB")), interpolation="nearest")
        axes.set_title(first.labels[index], fontsize=8.5, fontweight="bold")
        for line, runs in enumerate(methods):
            answer = runs.predicted[0, index]
            right = answer == first.labels[index]
            text = f"{'✓' if right else '✗'} {method_label(runs.method)}: {_short(answer, first.labels[index])}"  # type: ignore[arg-type]
            axes.text(
                0.5, -0.06 - 0.135 * line, text, transform=axes.transAxes, ha="center", va="top",
                fontsize=7, color=RIGHT if right else WRONG,
            )  # fmt: skip
    for axes in figure.axes:
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white", bbox_inches="tight", metadata={"Software": None})
    return path


def _short(answer: str, truth: str) -> str:
    family, _, pictogram = answer.partition(" ")
    return pictogram if truth.startswith(family + " ") else answer
