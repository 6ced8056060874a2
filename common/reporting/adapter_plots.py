"""Pictures of adapters: router load, mixers, singular values of the update.

Shades are those of matplotlib's `cividis` and `PuOr`, which people with the common colour-vision deficiencies can read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LogNorm, TwoSlopeNorm

from common.reporting import canvas

_MOST_ROWS = 80  # beyond this only some of the layers are named
_MOST_LETTERS = 28  # of a title above a mixer


def plot_router_load(path: Path, load: Mapping[str, Sequence[float]], *, title: str = "", svg: bool = False) -> Path:
    """Draw which share of the routed slots each expert of each layer got ([G] Figure 7).

    White is the balanced share 1/E; layers are drawn from the first at the top to the last.

    Args:
        path: PNG file to write.
        load: layer name -> (E,) shares that add up to one; the same E in every layer.
        title: heading; none where the page has one.
        svg: also write the picture as SVG beside the PNG.

    Returns:
        `path`.
    """
    shares = np.asarray([np.asarray(row, float) for row in load.values()])  # (L, E)
    layers, experts = shares.shape
    balanced = 1 / experts
    every = max(1, math.ceil(layers / _MOST_ROWS))
    with rc_context(canvas.STYLE | {"axes.grid": False}):
        figure, axes = canvas.new_figure(4.2 + 0.5 * experts, _height(layers))
        norm = TwoSlopeNorm(balanced, vmin=0, vmax=max(2 * balanced, float(shares.max())))
        image = axes.imshow(shares, cmap="PuOr_r", norm=norm, aspect="auto")
        axes.set_xticks(range(experts), [str(expert + 1) for expert in range(experts)])
        names = short_layer_names(load)
        axes.set_yticks(range(0, layers, every), [names[i] for i in range(0, layers, every)], fontsize=7)
        axes.set_xlabel("expert")
        axes.set_ylabel("layer")
        if layers <= _MOST_ROWS:
            for (row, column), share in np.ndenumerate(shares):
                colour = "white" if abs(float(norm(share)) - 0.5) > 0.36 else "black"
                axes.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=6.5, color=colour)
        canvas.shade_bar(figure, image, axes, f"share of the routed slots (balanced: {balanced:.1%})")
        return canvas.save(figure, path, title, svg)


def short_layer_names(names: Iterable[str]) -> list[str]:
    """Layer names without the dotted parts that all of them begin with."""
    parts = [name.split(".") for name in names]
    common = 0
    while len(parts) > 1 and all(len(part) > common + 1 for part in parts):
        if len({part[common] for part in parts}) > 1:
            break
        common += 1
    return [".".join(part[common:]) for part in parts]


def plot_singular_values(
    path: Path, values: Mapping[str, Sequence[float]], *, title: str = "", svg: bool = False
) -> Path:
    """Draw the singular values of every layer's update, one row a layer, largest first.

    Args:
        path: PNG file to write.
        values: layer name -> singular values in descending order; layers may have different numbers of them.
        title: heading; none where the page has one.
        svg: also write the picture as SVG beside the PNG.

    Returns:
        `path`.
    """
    layers, most = len(values), max(map(len, values.values()))
    table = np.full((layers, most), np.nan)
    for row, numbers in enumerate(values.values()):
        table[row, : len(numbers)] = numbers
    top = float(np.nanmax(table)) or 1.0
    every = max(1, math.ceil(layers / _MOST_ROWS))
    with rc_context(canvas.STYLE | {"axes.grid": False}):
        figure, axes = canvas.new_figure(min(12.0, 4.4 + 0.3 * most), _height(layers))
        # four powers of ten: what lies below is nothing beside the largest
        norm = LogNorm(top * 1e-4, top, clip=True)
        shown = np.ma.masked_invalid(np.maximum(table, top * 1e-4))
        image = axes.imshow(shown, cmap="cividis", norm=norm, aspect="auto")
        names = short_layer_names(values)
        axes.set_yticks(range(0, layers, every), [names[i] for i in range(0, layers, every)], fontsize=7)
        axes.set_xticks(range(0, most, max(1, math.ceil(most / 16))))
        axes.set_xticklabels([str(tick + 1) for tick in range(0, most, max(1, math.ceil(most / 16)))])
        axes.set_xlabel("singular value, largest first")
        axes.set_ylabel("layer")
        canvas.shade_bar(figure, image, axes, "singular value", percent=False)
        return canvas.save(figure, path, title, svg)


def plot_mixers(path: Path, mixers: Mapping[str, np.ndarray], *, title: str = "", svg: bool = False) -> Path:
    """Draw mixers as heat maps side by side, all on one scale; white is zero.

    Args:
        path: PNG file to write.
        mixers: layer name -> (r, r); at most a dozen are readable.
        title: heading; none where the page has one.
        svg: also write the picture as SVG beside the PNG.

    Returns:
        `path`.
    """
    columns = min(4, len(mixers))
    rows = math.ceil(len(mixers) / columns)
    top = max(float(np.abs(mixer).max()) for mixer in mixers.values()) or 1.0
    with rc_context(canvas.STYLE | {"axes.grid": False}):
        figure, first = canvas.new_figure(2.4 * columns + 1.0, 2.6 * rows)
        figure.delaxes(first)
        grid = figure.subplots(rows, columns, squeeze=False)
        image = None
        for axes, (name, mixer) in zip(
            grid.flat, zip(short_layer_names(mixers), mixers.values(), strict=True), strict=False
        ):
            image = axes.imshow(mixer, cmap="PuOr_r", vmin=-top, vmax=top, interpolation="nearest")
            axes.set_title(_end_of(name), fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
        for axes in grid.flat[len(mixers) :]:
            axes.set_visible(False)
        canvas.shade_bar(figure, image, list(grid.flat), "entry of M (row: into B, column: out of A)", percent=False)
        return canvas.save(figure, path, title, svg)


def _end_of(name: str) -> str:
    """As many of the last parts of a layer's name as have room above its mixer."""
    while len(name) > _MOST_LETTERS and "." in name.removeprefix("…"):
        name = "…" + name.removeprefix("…").partition(".")[2]
    return name


def _height(layers: int) -> float:
    row = 0.24 if layers <= 36 else 0.15
    return 1.4 + row * min(layers, _MOST_ROWS)
