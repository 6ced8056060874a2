"""A radar: several abilities of several models on one page, as the papers show benchmarks of many parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

from common.reporting import canvas

_WORDS = 18  # letters of a line of an axis label


def plot_radar(
    path: Path,
    values: Mapping[str, Mapping[str, float | None]],
    *,
    title: str = "",
    unit: str = "%",
    top: float = 100.0,
    svg: bool = False,
) -> Path:
    """Draw one closed line per model over the same axes, each from 0 in the middle.

    Args:
        path: PNG file to write.
        values: label -> axis -> value in [0, top]; an axis that a model lacks leaves its line open there. The axes
            stand in the order in which they first occur, clockwise from the top; at least three.
        title: heading; none where the page has one.
        unit: behind the numbers of the rings.
        top: the largest possible value. The rings end at the next round number above the largest value drawn, so
            that weak models are more than a dot; the numbers say where.
        svg: also write the picture as SVG beside the PNG.

    Returns:
        `path`.
    """
    names = list(dict.fromkeys(axis for line in values.values() for axis in line))
    assert len(names) >= 3, names
    angles = np.arange(len(names)) * 2 * math.pi / len(names)
    with rc_context({**canvas.STYLE, "grid.color": "#d5d5d5"}):
        figure = Figure(figsize=(6.4, 5.4), layout="constrained")
        axes = figure.add_subplot(projection="polar")
        assert isinstance(axes, PolarAxes)
        axes.set_theta_zero_location("N")
        axes.set_theta_direction(-1)
        for index, (label, line) in enumerate(values.items()):
            found = [math.nan if line.get(name) is None else float(line[name] or 0.0) for name in names]
            look = canvas.look(index)
            ring = np.append(angles, 2 * math.pi)
            axes.plot(ring, [*found, found[0]], label=label, markersize=6, linewidth=1.8, clip_on=False, **look)
            if len(values) == 1 and np.isfinite(found).all():
                axes.fill(angles, found, color=look["color"], alpha=0.12)
        _scale(axes, values, unit, top)
        _name(axes, angles, names, values)
        if len(values) > 1:
            figure.legend(loc="outside lower center", ncols=min(3, len(values)), fontsize=9)
        return canvas.save(figure, path, title, svg)


def _scale(axes: PolarAxes, values: Mapping[str, Mapping[str, float | None]], unit: str, top: float) -> None:
    numbers = [value for line in values.values() for value in line.values() if value is not None]
    largest = max(filter(math.isfinite, numbers), default=top)
    # Five rings at most, at round numbers.
    step = next(top * share for share in (0.05, 0.1, 0.2) if top * share * 5 >= min(largest, top))
    rings = np.arange(1, math.ceil(min(max(largest, step), top) / step - 1e-9) + 1) * step
    axes.set_ylim(0, rings[-1])
    axes.set_yticks(rings, [f"{ring:g}{unit}" for ring in rings], fontsize=8, color="#555555")
    for text in axes.get_yticklabels():
        text.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5})
    axes.spines["polar"].set_color("#999999")
    axes.spines["polar"].set_visible(True)


def _name(
    axes: PolarAxes, angles: np.ndarray, names: list[str], values: Mapping[str, Mapping[str, float | None]]
) -> None:
    # The numbers of a rings' label stand between two axes, where no line has its marker.
    axes.set_rlabel_position(math.degrees(angles[1]) / 2)
    labels = []
    for name in names:
        value = next(iter(values.values())).get(name) if len(values) == 1 else None
        labels.append(_broken(name) + ("" if value is None else f"\n{value:.1f}"))
    axes.set_xticks(angles, labels, fontsize=9)
    axes.tick_params(axis="x", pad=5)
    for angle, label in zip(angles, axes.get_xticklabels(), strict=True):
        side, height = math.sin(angle), math.cos(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.2 else "left" if side > 0 else "right")
        label.set_verticalalignment("bottom" if height > 0.9 else "top" if height < -0.9 else "center")


def _broken(name: str) -> str:
    """A name over several lines, cut at its spaces and underscores."""
    lines = [""]
    for word in name.replace("_", " ").split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > _WORDS:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
