"""The end of a training: what every pipeline leaves in its run directory once the weights are saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from common.reporting.diagnostics import write_diagnostics
from common.reporting.plots import plot_curves
from common.reporting.runs import read_metrics, series
from common.reporting.samples import Samples, write_samples
from common.training import RunDirectory, processes
from common.write_errors import writing_is_explained

# key in `metrics.jsonl` -> (what its curve is called, whether it is a share)
_CURVES = {
    "loss": ("training loss", False),
    "eval_loss": ("validation loss", False),
    "eval_accuracy": ("validation accuracy", True),
}


@dataclass(frozen=True)
class Ending:
    """What a finished training has to leave.

    Args:
        label: the method, as the curves' legends name it.
        model: with the trained adapter, its weights whole.
        samples: what shows what was learnt; None: there is none.
        results: the entries of `results.json`, as for `RunDirectory.write_results`.
    """

    label: str
    model: nn.Module
    results: dict[str, Any]
    samples: Samples | None = None


def end_run(run: RunDirectory, save: Callable[[], Ending]) -> dict[str, Any]:
    """Save a trained model, draw its curves and diagnostics, and write its results; a collective call.

    `results.json` comes last: a run that has it is finished, and one that was killed before has its checkpoint.

    Args:
        run: the run directory.
        save: writes what is the pipeline's own, first of all the weights; called in the main process alone.

    Returns:
        The content of `results.json`, in every process.

    Raises:
        UserError: the disk is full, or the directory cannot be written.
    """

    def write() -> dict[str, Any]:
        ending = save()
        lines = read_metrics(run.metrics)
        for key, (words, percent) in _CURVES.items():
            course = series(lines, key)
            if course[0]:
                plot_curves(run.plots / f"{key}.png", {ending.label: course}, ylabel=words, percent=percent)
        write_diagnostics(run.path, ending.model)
        if ending.samples is not None:
            write_samples(run.path, ending.samples)
        return run.write_results(**ending.results)

    return processes.on_main(writing_is_explained(run.path)(write))
