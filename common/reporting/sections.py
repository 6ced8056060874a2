"""The parts of a report, each made of whatever runs have what it shows.

A part is a function (groups of runs, folder for its pictures) -> `Section`, or None where no run has anything to show.
`STANDARD` lists those of `mosgoat report`; a pipeline composes its own page of these and of others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.reporting.adapter_plots import plot_router_load
from common.reporting.groups import RunGroup, differing_keys, flatten
from common.reporting.page import Block, Code, Facts, Figure, Figures, Section, Text
from common.reporting.plots import plot_bars, plot_curves
from common.reporting.runs import MIXERS_PLOT, SPECTRA_PLOT, Run, evaluated_load, read_json, training_load
from common.reporting.tables import Column, Row, Table, Value

Part = Callable[[Sequence[RunGroup], Path], Section | None]

# What a training cost, as against what it achieved: result key -> (heading, decimals, divided by, unit).
_COST: dict[str, tuple[str, int, float, str]] = {
    "trainable_parameters": ("trained parameters", 0, 1, ""),
    "steps": ("steps", 0, 1, ""),
    "train_seconds": ("training", 1, 1, " s"),
    "samples_per_second": ("speed", 1, 1, "/s"),
    "peak_memory_bytes": ("peak memory", 0, 2**20, " MiB"),
}
_SHARES = ("accuracy", "share", "exact")  # ends of the names of metrics in [0, 1], shown in percent
_LOWER = ("loss", "perplexity", "seconds", "share")


def results_section(groups: Sequence[RunGroup], plots: Path) -> Section:
    """What was measured, and what it cost: a table of each for every pipeline."""
    blocks: list[Block] = []
    tasks = list(dict.fromkeys(group.task for group in groups))
    for task in tasks:
        members = [group for group in groups if group.task == task]
        of = f"{task}. " if len(tasks) > 1 else ""
        if task_bars := _bars(members, plots / f"accuracy_{task}.png"):
            blocks.append(Figures([task_bars]))
        blocks.append(_measured(members, of))
        blocks.append(_costs(members, of))
    return Section("Result", blocks)


def _measured(groups: Sequence[RunGroup], of: str) -> Table:
    keys = [key for key in _metric_keys(groups) if key not in _COST and not key.endswith("_per_second")]
    keys = [key for key in keys if not key.startswith("total_")]
    columns, rows = _head(groups), []
    for key in keys:
        percent = key.endswith(_SHARES)
        # the loss of a training says nothing about which run is better
        better = None if key.startswith("train_") else "lower" if key.endswith(_LOWER) else "higher"
        columns.append(
            Column(key.replace("_", " ") + (", %" if percent else ""), 2 if percent else 4, better)  # type: ignore[arg-type]
        )
    for group in groups:
        values: list[Value] = _begin(group, groups)
        for key in keys:
            spread = group.metric(key)
            values.append(spread.times(100) if spread and key.endswith(_SHARES) else spread)
        rows.append(Row(tuple(values)))
    several = any(len(group.runs) > 1 for group in groups)
    caption = f"{of}As measured at the end of each run" + (
        ", mean ± standard deviation over the seeds" if several else ""
    )
    return Table(columns, rows, caption + ".")


def _costs(groups: Sequence[RunGroup], of: str) -> Table:
    keys = [key for key in _COST if key in _metric_keys(groups)]
    columns = [*_head(groups), *(Column(_COST[key][0], _COST[key][1], None, _COST[key][3]) for key in keys)]
    rows = []
    for group in groups:
        values: list[Value] = _begin(group, groups)
        for key in keys:
            spread = group.metric(key)
            whole = spread is not None and _COST[key][1:3] == (0, 1) and not spread.deviation
            if spread is None or whole:
                values.append(int(spread.mean) if spread else None)
            else:
                values.append(spread.times(1 / _COST[key][2]))
        rows.append(Row(tuple(values)))
    return Table(columns, rows, f"{of}What it took. Times are comparable only where the machine was, see Environment.")


def _head(groups: Sequence[RunGroup]) -> list[Column]:
    columns = [Column("run")]
    if any(group.first.results.get("dataset") for group in groups):
        columns.append(Column("data"))
    return [*columns, Column("n", better=None), Column("seeds", better=None)]


def _begin(group: RunGroup, groups: Sequence[RunGroup]) -> list[Value]:
    results = group.first.results
    values: list[Value] = [group.label]
    if any(other.first.results.get("dataset") for other in groups):
        values.append(results.get("dataset"))
    return [*values, results.get("n"), len(group.runs)]


def _metric_keys(groups: Iterable[RunGroup]) -> list[str]:
    """Every single number among the results, in the order in which they were written."""
    found = {
        key: None
        for group in groups
        for key, value in group.first.results["metrics"].items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return list(found)


def _bars(groups: Sequence[RunGroup], path: Path) -> Figure | None:
    values = {
        group.label: {str(group.first.results.get("dataset", group.task)): _numbers(group, "accuracy")}
        for group in groups
        if group.metric("accuracy") is not None
    }
    if len(values) < 2:
        return None
    plot_bars(path, values, ylabel="accuracy")
    several = any(len(group.runs) > 1 for group in groups)
    whisker = "; each dot is a seed, the whisker one standard deviation" if several else ""
    return Figure(path, f"Bars of the accuracy of {', '.join(values)}.", f"Accuracy of the finished runs{whisker}.")


def _numbers(group: RunGroup, key: str) -> list[float]:
    return [float(run.results["metrics"][key]) for run in group.runs]


def training_section(groups: Sequence[RunGroup], plots: Path) -> Section | None:
    """The course of the loss and of every accuracy and evaluation that was logged."""
    logged = dict.fromkeys(key for group in groups for run in group.runs for line in run.metrics for key in line)
    keys = ["loss", *(key for key in logged if key.startswith("eval_") or key.endswith("accuracy"))]
    figures = [curve_figure(groups, plots, f"{key}.png", key) for key in dict.fromkeys(keys)]
    shown = [figure for figure in figures if figure is not None]
    return Section("Training", [Figures(shown)]) if shown else None


def curve_figure(
    groups: Sequence[RunGroup], plots: Path, name: str, key: str, label: str | None = None
) -> Figure | None:
    """The course of one logged metric, a line for each group; None where no run logged it twice.

    Args:
        groups: the runs.
        plots: where the picture goes.
        name: of the PNG file.
        key: as in `metrics.jsonl`.
        label: what it is; none given: made of the key.
    """
    courses = {group.label: group.course(key) for group in groups}
    courses = {group: course for group, course in courses.items() if len(course[0]) > 1}
    if not courses:
        return None
    label = label or _spoken(key)
    # evaluations are few and exact, training batches are many and noisy
    smooth = 0.0 if key.startswith(("eval_", "router_")) else 0.6
    shares = key.endswith(_SHARES) or key in ("router_load_max", "router_load_min")
    plot_curves(plots / name, courses, ylabel=label, percent=shares, smooth=smooth)
    thin = " (thin: as logged)" if smooth else ""
    mean = ", mean over the seeds" if any(len(group.runs) > 1 for group in groups) else ""
    alt = f"Course of the {label} over the steps of {', '.join(courses)}."
    return Figure(plots / name, alt, f"{label[0].upper()}{label[1:]}{mean}{thin}.")


def _spoken(key: str) -> str:
    if key.startswith("eval_"):
        return f"validation {key.removeprefix('eval_').replace('_', ' ')}"
    return f"training {key.replace('_', ' ')}"


def router_section(groups: Sequence[RunGroup], plots: Path) -> Section | None:
    """How evenly the experts are used, in training and on the test set ([G] Figure 7)."""
    heat = [figure for number, group in enumerate(groups) for figure in router_figures(group, plots / str(number))]
    labels = {
        "router_load_entropy": "entropy of the router load (1: balanced)",
        "router_load_max": "largest share of any expert in any layer",
    }
    curves = [
        figure for key, text in labels.items() if (figure := curve_figure(groups, plots, f"{key}.png", key, text))
    ]
    blocks: list[Block] = [Figures(figures) for figures in (curves, heat) if figures]
    return Section("Router load", blocks) if blocks else None


def router_figures(group: RunGroup, plots: Path) -> list[Figure]:
    """The load of the group's first run by layer and expert, in its training and on its test set."""
    sources = {
        "in the last quarter of the training": training_load(group.first.path / "router_load.jsonl"),
        "on the test set": evaluated_load(group.first.path / "router_load.json"),
    }
    found = [(when, load) for when, load in sources.items() if load]
    return [load_figure(group, plots / f"router_load_{n}.png", load, when) for n, (when, load) in enumerate(found)]


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
        figures = []
        for group in groups:
            path = group.first.path / "plots" / name
            if path.is_file():
                routed = (group.first.path / "router_load.jsonl").is_file() and name == SPECTRA_PLOT
                mean = " (the mean over a balanced routing)" if routed else ""
                caption = f"{group.label}, seed {group.seeds[0]}: {text}{mean}."
                figures.append(Figure(path, f"{text}, {group.label}.", caption))
        if figures:
            blocks.append(Figures(figures))
    return Section("Adapters", blocks) if blocks else None


def confusion_section(groups: Sequence[RunGroup], plots: Path) -> Section | None:
    """The confusion matrices that runs have drawn."""
    figures = [
        Figure(path, f"Confusion matrix of {group.label}.", f"{group.label}, seed {group.seeds[0]}.")
        for group in groups
        if (path := group.first.path / "plots" / "confusion.png").is_file()
    ]
    return Section("Confusions", [Figures(figures, width=480)]) if figures else None


def recipe_section(groups: Sequence[RunGroup], plots: Path) -> Section:
    """Where the recipes differ, and each of them whole."""
    blocks: list[Block] = []
    keys = differing_keys([group.first.config for group in groups])
    if keys:
        flat = [flatten(group.first.config) for group in groups]
        rows = [Row((key, *(_text(config.get(key)) for config in flat))) for key in keys]
        columns = [Column("key", better=None), *(Column(group.label, better=None) for group in groups)]
        blocks.append(Table(columns, rows, "The keys in which the recipes differ."))
    for group in groups:
        blocks += recipe_blocks(group)
    return Section("Recipes", blocks, folded=True)


def recipe_blocks(group: RunGroup) -> list[Block]:
    """The resolved recipe of the group's first run."""
    text = yaml.safe_dump(dict(group.first.config), sort_keys=False, allow_unicode=True)
    return [Text(f"As resolved for {group.label}, seed {group.seeds[0]}:"), Code(text)]


def environment_section(groups: Sequence[RunGroup], plots: Path) -> Section | None:
    """Where and with what each group's first run was made."""
    blocks: list[Block] = []
    for group in groups:
        facts = environment_facts(group.first)
        if facts:
            blocks += [Text(f"{group.label}, {group.first.path}:"), Facts(facts)]
    return Section("Environment", blocks, folded=True) if blocks else None


def environment_facts(run: Run) -> dict[str, str]:
    """Start, machine, commit and versions of a run; empty where it did not write them."""
    found = _optional(run.path / "environment.json")
    devices = ", ".join(dict.fromkeys(str(device.get("name")) for device in found.get("devices", [])))
    git = found.get("git") or {}
    changed = f" with {git['changed_files']} changed files" if git.get("changed_files") else ""
    facts = {
        "started": found.get("started"),
        "machine": devices and f"{found.get('cpu_count', '?')} cores, {devices}",
        "processes": found.get("world_size"),
        "commit": git.get("commit") and f"{git['commit'][:12]}{changed}",
        "python": found.get("python"),
        "packages": ", ".join(f"{name} {version}" for name, version in found.get("packages", {}).items()),
    }
    return {name: str(value) for name, value in facts.items() if value}


def _optional(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file) if file.is_file() else {}
    except UserError as error:
        raise UserError(f"{error}; delete the file, or leave its run out") from None
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return "" if value is None else str(value)


STANDARD: tuple[Part, ...] = (
    results_section,
    training_section,
    router_section,
    adapter_section,
    confusion_section,
    recipe_section,
    environment_section,
)
