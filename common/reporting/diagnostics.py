"""What a run leaves on the disk about its adapter: `diagnostics.json`, and pictures of it in `plots/`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from common.adapters.spectrum import dense_mixers, update_spectra
from common.files import write_json
from common.reporting.adapter_plots import plot_mixers, plot_router_load, plot_singular_values
from common.reporting.runs import LOAD_PLOT, MIXERS_PLOT, SPECTRA_PLOT, training_load

FILE_NAME = "diagnostics.json"
_SHOWN_MIXERS = 12


def write_diagnostics(run: Path, model: nn.Module) -> dict[str, Any]:
    """Write the diagnostics of a finished training into its run directory; call it in the main process only.

    `diagnostics.json` holds `singular_values`: layer -> those of the update (see `update_spectra`), `mixers`: layer ->
    the singular values of M, and `router_load`: layer -> each expert's share in the last quarter of the training.
    What the adapter does not have is left out, and without any of it nothing is written.

    Args:
        run: the run directory.
        model: any module with the trained adapter below, its weights whole.

    Returns:
        What was written.
    """
    found: dict[str, Any] = {}
    spectra = {name: values.tolist() for name, values in update_spectra(model).items()}
    if spectra:
        found["singular_values"] = {name: _short(values) for name, values in spectra.items()}
        plot_singular_values(run / "plots" / SPECTRA_PLOT, spectra)
    mixers = {name: mixer.numpy() for name, mixer in dense_mixers(model).items()}
    if mixers:
        found["mixers"] = {name: _short(np.linalg.svd(m, compute_uv=False).tolist()) for name, m in mixers.items()}
        plot_mixers(run / "plots" / MIXERS_PLOT, evenly_spaced(mixers, _SHOWN_MIXERS))
    load = training_load(run / "router_load.jsonl")
    if load:
        found["router_load"] = {name: _short(shares) for name, shares in load.items()}
        plot_router_load(run / "plots" / LOAD_PLOT, load)
    if found:
        write_json(run / FILE_NAME, found)
    return found


def evenly_spaced(mixers: Mapping[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
    """At most so many of the layers, from the first to the last."""
    names = list(mixers)
    if len(names) > most:
        names = [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]
    return {name: mixers[name] for name in names}


def _short(values: list[float]) -> list[float]:
    # six digits: the file of a large model stays readable, and no picture shows more
    assert all(map(math.isfinite, values)), "a trained weight is not finite"
    return [float(f"{value:.6g}") for value in values]
