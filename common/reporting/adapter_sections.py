"""The parts of a report about adapters and their mistakes: router load, mixers, spectra, confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.reporting.adapter_plots import plot_router_load
from common.reporting.groups import RunGroup
from common.reporting.page import Block, Figure, Figures, Section
from common.reporting.runs import (
    EVALUATED_LOAD,
    MIXERS_PLOT,
    ROUTER_LOAD,
    SPECTRA_PLOT,
    evaluated_load,
    training_load,
)
from common.reporting.sections import SETTINGS, curve_figures, shown

CONFUSION = "confusion.png"


def router_section(groups: Sequence[RunGroup], plots: Path) -> Section | None:
    """How evenly the experts are used, in training and on the test set ([G] Figure 7)."""
    routed = [group for group in groups if _loads(group)]
    some, note = shown(routed, SETTINGS, "settings with routers")
    heat = [figure for number, group in enumerate(some) for figure in router_figures(group, plots / str(number))]
    labels = {
        "router_load_entropy": "entropy of the router load (1: balanced)",
        "router_load_max": "largest share of any expert in any layer",
    }
    curves = [figure for key, text in labels.items() for figure in curve_figures(groups, plots, key, text)[:2]]
    blocks: list[Block] = [Figures(figures) for figures in (curves, heat) if figures]
    return Section("Router load", [*note, *blocks]) if blocks else None


def router_figures(group: RunGroup, plots: Path) -> list[Figure]:
    """The load of the group's first run by layer and expert, in its training and on its test set."""
    return [
        load_figure(group, plots / f"router_load_{n}.png", load, when)
        for n, (when, load) in enumerate(_loads(group).items())
    ]


def _loads(group: RunGroup) -> dict[str, dict[str, list[float]]]:
    run, found = group.first, dict[str, dict[str, list[float]]]()
    if run.has(ROUTER_LOAD):
        found["in the last quarter of the training"] = training_load(run.path / ROUTER_LOAD)
    if run.has(EVALUATED_LOAD):
        found["on the test set"] = evaluated_load(run.path / EVALUATED_LOAD)
    return {when: load for when, load in found.items() if load}


def load_figure(group: RunGroup, path: Path, load: Mapping[str, Sequence[float]], when: str) -> Figure:
    """One router load as a picture at `path`.

    Args:
        group: whose first run it is of.
        path: PNG file to write.
        load: layer name -> (E,) shares.
        when: in what the tokens were counted, such as `on the test set`.
    """
    plot_router_load(path, load, title=f"{group.label}, {when}")
    shares = [share for row in load.values() for share in row]
    experts = len(next(iter(load.values())))
    caption = (
        f"{group.label}, seed {group.seeds[0]}: share of the routed slots that each expert got {when}. Balanced is "
        f"{1 / experts:.1%}; the least used expert of any layer got {min(shares):.1%}, the most used {max(shares):.1%}."
    )
    return Figure(path, f"Share of the routed slots by layer and expert for {group.label}, {when}.", caption)


def adapter_section(groups: Sequence[RunGroup], plots: Path) -> Section | None:
    """Mixers and singular values of the update, where the run has them."""
    blocks: list[Block] = []
    for name, text in (
        (SPECTRA_PLOT, "singular values of the learned update of each layer"),
        (MIXERS_PLOT, "trained mixers M of some layers, from the first to the last"),
    ):
        having, note = shown([group for group in groups if _plot(group, name)], SETTINGS, f"settings with {text}")
        figures = []
        for group in having:
            routed = (group.first.path / ROUTER_LOAD).is_file() and name == SPECTRA_PLOT
            mean = " (the mean over a balanced routing)" if routed else ""
            caption = f"{group.label}, seed {group.seeds[0]}: {text}{mean}."
            figures.append(Figure(group.first.path / "plots" / name, f"{text}, {group.label}.", caption))
        if figures:
            blocks += [*note, Figures(figures)]
    return Section("Adapters", blocks) if blocks else None


def confusion_section(groups: Sequence[RunGroup], plots: Path) -> Section | None:
    """The confusion matrices that runs have drawn."""
    having, note = shown([group for group in groups if _plot(group, CONFUSION)], SETTINGS, "settings with confusions")
    figures = [
        Figure(
            group.first.path / "plots" / CONFUSION,
            f"Confusion matrix of {group.label}.",
            f"{group.label}, seed {group.seeds[0]}.",
        )
        for group in having
    ]
    return Section("Confusions", [*note, Figures(figures, width=480)]) if figures else None


def _plot(group: RunGroup, name: str) -> bool:
    return (group.first.path / "plots" / name).is_file()
