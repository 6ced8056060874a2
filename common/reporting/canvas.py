"""What all pictures share: colours that colour-blind readers can tell apart, figures without global state, files.

The colours are Okabe and Ito's (2008). The figures are drawn with matplotlib's Agg backend and hold no global state,
so that any thread may draw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)), (0, (8, 2)))
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")

_WITHIN, _LETTERS = 36, 12  # letters of a label that has room inside the axes, and of a legend per inch

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
    "legend.frameon": False,
    "text.parse_math": False,  # names of runs and classes may hold dollars
}


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def look(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of line number `index`."""
    # Dash patterns move on with each round of colours, so that line 9 does not look like line 1.
    turn = index + index // len(PALETTE)
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[turn % len(DASHES)],
    }


def legend(axes: Axes, entries: int, below: bool = False) -> None:
    """A legend where there is room for it; none without labels."""
    labels = axes.get_legend_handles_labels()[1]
    if not labels:
        return
    longest = max(map(len, labels))
    if below or entries > 6 or longest > _WITHIN:
        # of figures that are narrow beside their labels the axes would be squeezed to nothing
        columns = max(1, min(4, entries, int(_LETTERS * axes.figure.bbox.width / axes.figure.dpi / (longest + 6))))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=columns, fontsize=9)
    else:
        axes.legend(fontsize=9)


def shade_bar(figure: Figure, image: Any, axes: Any, label: str, *, percent: bool = True) -> None:
    """The scale of an image's shades."""
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
    if percent:
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # without mathematical notation


def save(figure: Figure, path: Path, title: str, svg: bool = False) -> Path:
    """Write a figure as PNG, and as SVG beside it on demand; the same numbers give the same bytes."""
    if title:
        figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date or version in the file, so that the same numbers give the same bytes.
    figure.savefig(path, dpi=150, facecolor="white", bbox_inches="tight", metadata={"Software": None})
    if svg:
        figure.savefig(path.with_suffix(".svg"), facecolor="white", bbox_inches="tight", metadata={"Date": None})
    return path
