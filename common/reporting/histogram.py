"""A picture of how often each size occurs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from common.reporting import canvas


def plot_histogram(
    path: Path,
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    xlabel: str,
    ylabel: str,
    limits: Sequence[tuple[float, str]] = (),
    title: str = "",
    svg: bool = False,
) -> Path:
    """Draw a histogram that was counted before.

    Args:
        path: PNG file to write.
        edges: of the bins, ascending; one more than `counts`.
        counts: how many lie in each bin.
        xlabel: what was measured, with its unit.
        ylabel: what was counted.
        limits: positions drawn as dashed lines, each with its name.
        title: heading; none where the page has one.
        svg: also write the picture as SVG beside the PNG.

    Returns:
        `path`.
    """
    assert len(edges) == len(counts) + 1, (len(edges), len(counts))
    with rc_context(canvas.STYLE):
        figure, axes = canvas.new_figure(7.0, 3.6)
        axes.stairs(counts, edges, fill=True, color=canvas.PALETTE[0])
        for index, (position, name) in enumerate(limits):
            line = canvas.look(index + 1)
            axes.axvline(position, label=name, color=line["color"], linestyle=canvas.DASHES[1 + index])
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.set_xlim(left=min(0, edges[0]))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        canvas.legend(axes, len(limits))
        return canvas.save(figure, path, title, svg)
