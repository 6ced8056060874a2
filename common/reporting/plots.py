"""Pictures of runs: curves, bars with the spread of seeds, confusion matrices.

Readable without colour: every line has its own marker and dash pattern, every bar its hatch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator, PercentFormatter

from common.reporting import canvas
from common.reporting.tables import Spread

_MOST = 1e100  # beyond it an axis has no ticks


def plot_curves(
    path: Path,
    runs: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    ylabel: str,
    xlabel: str = "step",
    title: str = "",
    percent: bool = False,
    smooth: float = 0.0,
    svg: bool = False,
) -> Path:
    """Draw one line per run.

    Args:
        path: PNG file to write.
        runs: label -> (x values, y values) of equal length; a value that is not finite, or near to it, leaves a gap.
        ylabel: what y is, with its unit.
        xlabel: what x is.
        title: heading; none where the page has one.
        percent: y is a share in [0, 1], shown in percent.
        smooth: weight in [0, 1) of an exponential moving average with start-up correction; above 0 the raw
            values stay visible as a thin line, and the label says that the line is smoothed.
        svg: also write the picture as SVG beside the PNG.

    Returns:
        `path`.
    """
    assert 0 <= smooth < 1, smooth
    with rc_context(canvas.STYLE):
        figure, axes = canvas.new_figure(7.0, 4.0)
        for index, (label, (steps, values)) in enumerate(runs.items()):
            x, y = np.asarray(steps, float), np.asarray(values, float)
            y = np.where(np.abs(y) < _MOST, y, np.nan)
            look = canvas.look(index)
            if smooth:
                axes.plot(x, y, color=look["color"], linewidth=0.6, alpha=0.35)
                y = moving_average(y, smooth)
            # At most about twelve markers, staggered so that lines that coincide stay apart.
            every = max(1, math.ceil(len(x) / 12))
            start = (index * every // max(1, len(runs))) % every
            axes.plot(x, y, label=label, markersize=5, linewidth=1.7, markevery=(start, every), **look)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel + (" (smoothed)" if smooth else ""))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))  # with as many decimals as the ticks need
        canvas.legend(axes, len(runs))
        return canvas.save(figure, path, title, svg)


def moving_average(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average with start-up correction; values that are not finite are passed over.

    Args:
        values: (N,) float.
        weight: share in [0, 1) of the past in each new mean.

    Returns:
        (N,) float, NaN where `values` is not finite.
    """
    total, norm = 0.0, 0.0
    out = np.full(len(values), np.nan)
    for index, value in enumerate(values):
        if np.isfinite(value):
            total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
            out[index] = total / norm
    return out


def plot_bars(
    path: Path,
    values: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    ylabel: str = "top-1 accuracy",
    title: str = "",
    percent: bool = True,
    reference: Mapping[str, float] | None = None,
    reference_label: str = "before training",
    svg: bool = False,
) -> Path:
    """Draw groups of bars, one bar per method, with every seed's value and the seeds' standard deviation.

    Args:
        path: PNG file to write.
        values: method -> group (data set) -> one value per seed; a group that a method lacks stays empty.
        ylabel: what the bars measure.
        title: heading; none where the page has one.
        percent: values are shares in [0, 1], shown in percent.
        reference: group -> value drawn as a dashed line across the group, such as the zero-shot accuracy.
        reference_label: the line's name in the legend.
        svg: also write the picture as SVG beside the PNG.

    Returns:
        `path`.
    """
    groups = list(dict.fromkeys(group for method in values.values() for group in method))
    with rc_context(canvas.STYLE):
        figure, axes = canvas.new_figure(max(5.0, 1.6 + 0.36 * len(groups) * (len(values) + 1)), 4.0)
        width = 0.8 / max(1, len(values))
        for index, (method, by_group) in enumerate(values.items()):
            at = [position + (index - (len(values) - 1) / 2) * width for position in range(len(groups))]
            _draw_bars(axes, at, [by_group.get(group, ()) for group in groups], width, method, index, percent)
        labelled = False
        for position, group in enumerate(groups):
            if reference and group in reference:
                line = axes.hlines(
                    reference[group], position - 0.46, position + 0.46, colors="#444444", linestyles="--"
                )
                line.set_label("" if labelled else reference_label)
                labelled = True
        axes.set_xticks(range(len(groups)), groups)
        axes.set_ylabel(ylabel)
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.12)
        axes.set_ylim(bottom=0)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        canvas.legend(axes, len(values) + 1, below=True)
        return canvas.save(figure, path, title, svg)


def _draw_bars(
    axes: Axes,
    at: Sequence[float],
    seeds: Sequence[Sequence[float]],
    width: float,
    label: str,
    index: int,
    percent: bool,
) -> None:
    present = [(x, Spread.of(numbers), numbers) for x, numbers in zip(at, seeds, strict=True) if len(numbers)]
    bar = axes.bar(
        [x for x, _, _ in present],
        [spread.mean for _, spread, _ in present],
        width * 0.92,
        label=label,
        color=canvas.PALETTE[index % len(canvas.PALETTE)],
        hatch=canvas.HATCHES[index % len(canvas.HATCHES)],
        edgecolor="white",
    )
    assert len(bar) == len(present)
    for x, spread, numbers in present:
        if spread.deviation is not None:
            axes.errorbar(x, spread.mean, spread.deviation, color="black", capsize=3, linewidth=1)
            # Side by side, so that seeds with nearly the same value can all be seen.
            spots = x + width * np.linspace(-0.3, 0.3, len(numbers))
            axes.plot(spots, numbers, "o", markersize=3.5, color="white", markeredgecolor="black")
        top = max([spread.mean + (spread.deviation or 0), *numbers])
        text = f"{spread.mean * 100:.1f}" if percent else f"{spread.mean:.3g}"
        axes.annotate(text, (x, top), (0, 5), textcoords="offset points", ha="center", fontsize=8)


def plot_confusion(
    path: Path, matrix: np.ndarray, class_names: Sequence[str], *, title: str = "", svg: bool = False
) -> Path:
    """Draw a confusion matrix: rows are the true classes, shares of a row add up to one.

    Up to 20 classes every cell shows its count; beyond that only colour; beyond about 60 only some of the
    class names are printed, evenly spaced, because 397 names would lie on each other.

    Args:
        path: PNG file to write.
        matrix: (C, C) counts, [true, predicted].
        class_names: C names.
        title: heading; none where the page has one.
        svg: also write the picture as SVG beside the PNG.

    Returns:
        `path`.
    """
    counts = np.asarray(matrix, float)
    classes = len(class_names)
    assert counts.shape == (classes, classes), (counts.shape, classes)
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    names = [_shorten(name, 24) for name in class_names]
    every = max(1, math.ceil(classes / 60))
    side = min(11.0, max(4.0, 0.32 * (classes / every) + 1.6))
    with rc_context(canvas.STYLE | {"axes.grid": False}):
        figure, axes = canvas.new_figure(side + 1.0, side)
        # The root makes a confusion of a few percent visible beside a diagonal near 100 %.
        image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        ticks = range(0, classes, every)
        size = 8 if len(ticks) <= 30 else 6.5
        axes.set_xticks(ticks, [names[tick] for tick in ticks], rotation=90, fontsize=size)
        axes.set_yticks(ticks, [names[tick] for tick in ticks], fontsize=size)
        axes.set_xlabel("predicted class" + (f" (every {every}th is named)" if every > 1 else ""))
        axes.set_ylabel("true class")
        for spine in axes.spines.values():
            spine.set_visible(False)
        if classes <= 20:
            _write_counts(axes, counts, shares)
        canvas.shade_bar(figure, image, axes, "share of the true class")
        return canvas.save(figure, path, title, svg)


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.4 else "black"
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", fontsize=8, color=colour)


def _shorten(name: str, length: int) -> str:
    # From the middle: names that begin alike, such as those of traffic signs, differ at their end.
    tail = length // 2
    return name if len(name) <= length else f"{name[: length - 1 - tail]}…{name[-tail:]}"
