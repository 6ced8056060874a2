"""Pictures: what is drawn, asked of matplotlib's own objects and of the files."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from common.reporting import plots


def test_lines_differ_in_colour_marker_and_dashes(tmp_path: Path, drawn: list[Figure]) -> None:
    runs = {name: ([0, 1, 2], [3.0, 2.0, 1.0]) for name in ("LoRA", "MoSLoRA", "GOAT", "GOAT+")}
    plots.plot_curves(tmp_path / "loss.png", runs, ylabel="loss")
    lines = drawn[0].axes[0].get_lines()
    for look in ("get_color", "get_marker", "get_linestyle"):
        assert len({str(getattr(line, look)()) for line in lines}) == len(runs), look


def test_more_runs_than_colours_are_still_told_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    runs = {str(index): ([0, 1], [index, index]) for index in range(20)}
    plots.plot_curves(tmp_path / "many.png", runs, ylabel="loss")
    looks = {(line.get_color(), line.get_marker(), str(line._dash_pattern)) for line in drawn[0].axes[0].get_lines()}
    assert len(looks) == 20


def test_curves_are_written_as_png_and_svg_on_demand(tmp_path: Path) -> None:
    path = plots.plot_curves(tmp_path / "a" / "x.png", {"run": ([0, 1], [1, 2])}, ylabel="y", svg=True)
    with Image.open(path) as image:
        assert image.format == "PNG"
    assert path.with_suffix(".svg").read_text().startswith("<?xml")


def test_the_same_numbers_give_the_same_file(tmp_path: Path) -> None:
    runs = {"run": ([0, 1, 2], [1.0, float("nan"), 2.0])}
    first = plots.plot_curves(tmp_path / "1.png", runs, ylabel="y").read_bytes()
    assert first == plots.plot_curves(tmp_path / "2.png", runs, ylabel="y").read_bytes()


def test_moving_average_is_not_drawn_towards_zero_at_the_start() -> None:
    assert plots.moving_average(np.full(5, 3.0), 0.9) == pytest.approx(np.full(5, 3.0))  # float rounding


def test_moving_average_passes_over_what_is_not_finite() -> None:
    smoothed = plots.moving_average(np.array([1.0, np.nan, np.inf, 1.0]), 0.5)
    assert np.isnan(smoothed[1])
    assert np.isnan(smoothed[2])
    assert smoothed[3] == pytest.approx(1.0)


def test_smoothing_is_said_on_the_axis_and_shows_the_raw_values(tmp_path: Path, drawn: list[Figure]) -> None:
    plots.plot_curves(tmp_path / "x.png", {"run": ([0, 1], [1, 2])}, ylabel="loss", smooth=0.5)
    axes = drawn[0].axes[0]
    assert "smoothed" in axes.get_ylabel()
    assert len(axes.get_lines()) == 2


def test_bars_show_the_mean_of_the_seeds_from_zero_on(tmp_path: Path, drawn: list[Figure]) -> None:
    values = {"LoRA": {"dtd": [0.6, 0.7]}, "GOAT": {"dtd": [0.8], "cars": [0.5]}}
    plots.plot_bars(tmp_path / "b.png", values, reference={"dtd": 0.44})
    axes = drawn[0].axes[0]
    assert sorted(round(bar.get_height(), 3) for bar in axes.patches) == [0.5, 0.65, 0.8]
    assert axes.get_ylim()[0] == 0
    assert "before training" in axes.get_legend_handles_labels()[1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["dtd", "cars"]


def test_confusion_rows_are_shares_of_the_true_class(tmp_path: Path, drawn: list[Figure]) -> None:
    matrix = np.array([[3, 1], [0, 0]])
    plots.plot_confusion(tmp_path / "c.png", matrix, ["cat", "dog"])
    shares = drawn[0].axes[0].images[0].get_array()
    assert shares[0].tolist() == [0.75, 0.25]
    # A class without pictures has no shares, which is not the same as 0 %.
    assert np.isnan(shares.filled(np.nan)[1]).all()
    assert {text.get_text() for text in drawn[0].axes[0].texts} == {"3", "1"}


@pytest.mark.parametrize("classes", [1, 47, 397])
def test_class_names_of_a_confusion_matrix_do_not_overlap(tmp_path: Path, drawn: list[Figure], classes: int) -> None:
    names = [f"class {i} with a name too long for any picture" for i in range(classes)]
    plots.plot_confusion(tmp_path / "c.png", np.eye(classes, dtype=int), names)
    labels = [label for label in drawn[0].axes[0].get_yticklabels() if label.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    assert len(labels) <= 60
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(boxes))  # 1 pixel
    with Image.open(tmp_path / "c.png") as image:
        assert max(image.size) < 2500
