"""The radar, asked of matplotlib's own objects and of the files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from common.reporting.radar import plot_radar

ABILITIES = {"logic_reasoning": 40.0, "finegrained_perception (cross-instance)": 72.5, "coarse_perception": 80.0}


def test_every_value_is_on_its_axis_clockwise_from_the_top(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_radar(tmp_path / "r.png", {"run": ABILITIES})
    axes = drawn[0].axes[0]
    angles, values = axes.get_lines()[0].get_data()
    assert np.asarray(values) == pytest.approx([40.0, 72.5, 80.0, 40.0])  # closed
    assert np.asarray(angles) == pytest.approx([0, 2 * math.pi / 3, 4 * math.pi / 3, 2 * math.pi])
    assert axes.get_theta_direction() == -1  # type: ignore[attr-defined]
    assert axes.get_theta_offset() == pytest.approx(math.pi / 2)  # type: ignore[attr-defined]
    labels = [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()]
    assert labels == ["logic reasoning 40.0", "finegrained perception (cross-instance) 72.5", "coarse perception 80.0"]


def test_several_runs_differ_in_more_than_colour(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_radar(tmp_path / "r.png", dict.fromkeys(("LoRA", "MoSLoRA", "GOAT"), ABILITIES))
    lines = drawn[0].axes[0].get_lines()
    for look in ("get_color", "get_marker", "get_linestyle"):
        assert len({str(getattr(line, look)()) for line in lines}) == 3, look
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["LoRA", "MoSLoRA", "GOAT"]


def test_an_axis_that_a_run_lacks_leaves_a_gap_and_no_zero(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_radar(tmp_path / "r.png", {"a": ABILITIES, "b": {"logic_reasoning": 10.0, "coarse_perception": None}})
    values = np.asarray(drawn[0].axes[0].get_lines()[1].get_ydata())
    assert values[0] == 10.0
    assert np.isnan(values[1:3]).all()


@pytest.mark.parametrize(("largest", "end"), [(80.0, 80.0), (81.0, 100.0), (100.0, 100.0), (7.0, 10.0), (0.0, 5.0)])
def test_the_rings_begin_at_zero_and_end_above_the_largest_value(
    tmp_path: Path, drawn: list[Figure], largest: float, end: float
) -> None:
    plot_radar(tmp_path / "r.png", {"run": {"a": largest, "b": 0.0, "c": 0.0}})
    assert drawn[0].axes[0].get_ylim() == pytest.approx((0.0, end))
    assert drawn[0].axes[0].get_yticklabels()[-1].get_text() == f"{end:g}%"


def test_it_is_written_as_png_and_on_demand_as_svg(tmp_path: Path) -> None:
    path = plot_radar(tmp_path / "a" / "r.png", {"run": ABILITIES}, title="abilities", svg=True)
    with Image.open(path) as image:
        assert image.format == "PNG"
    assert "abilities" in path.with_suffix(".svg").read_text(encoding="utf-8")


def test_two_axes_are_no_radar(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        plot_radar(tmp_path / "r.png", {"run": {"a": 1.0, "b": 2.0}})
