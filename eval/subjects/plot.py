"""A picture of the three measures: each adapter's mean with its interval, and every subject."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from common.reporting import canvas
from common.reporting.published import PublishedTable
from eval.subjects.scores import Measured, over_subjects, subject_means

_SHOWN = ("Real Images", "DreamBooth (Stable Diffusion)")  # of the paper's rows, as lines


def plot_methods(path: Path, measured: Measured, published: PublishedTable | None = None) -> Path:
    """Draw one panel per measure: a row per adapter with mean, 95 % interval and a dot for each subject.

    Args:
        path: PNG file to write.
        measured: what was measured.
        published: the paper's table, of which two rows are drawn as lines; None: none.
    """
    metrics, adapters = measured.metrics, measured.adapters
    rows = range(len(adapters))
    with rc_context(canvas.STYLE):
        figure = Figure(figsize=(1.5 + 3.2 * len(metrics), 1.6 + 0.55 * len(adapters)), layout="constrained")
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for panel, metric in zip(panels, metrics, strict=True):
            means = subject_means(measured.scores, metric)
            for row, (adapter, value) in enumerate(over_subjects(measured.scores, metric).items()):
                dots = [mean for (name, _), mean in means.items() if name == adapter]
                spread = row + 0.22 * np.linspace(-1, 1, len(dots)) if len(dots) > 1 else [row]
                panel.plot(dots, spread, "o", markersize=3, color=canvas.PALETTE[7], alpha=0.6)
                look = {"color": canvas.PALETTE[row % 8], "marker": canvas.MARKERS[row % 8]}
                panel.errorbar(value.mean, row, xerr=value.half, capsize=4, markersize=7, linewidth=1.8, **look)
            if published is not None:
                for name, dashes in zip(_SHOWN, ("-", "--"), strict=True):
                    at = published.value(name, metric)
                    if at is not None:
                        panel.axvline(at, color="#444444", linestyle=dashes, linewidth=1, label=f"paper: {name}")
            panel.set_xlabel(f"{measured.labels[metric]}, mean cosine")
            panel.set_yticks(rows, adapters)
            panel.set_ylim(len(adapters) - 0.5, -0.5)
            panel.grid(axis="y", visible=False)
        labels = panels[0].get_legend_handles_labels()
        if labels[1]:
            figure.legend(*labels, loc="outside lower center", ncols=2, fontsize=9)
        return canvas.save(figure, path, "dots: subjects; marks: means with 95 % intervals over subjects")
