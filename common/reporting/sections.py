"""The parts of a report about what was measured, each made of whatever runs have what it shows.

A part is a function (groups of runs, folder for its pictures) -> `Section`, or None where no run has anything to show.
`mosgoat report` composes its page of these and of those in `adapter_sections` and `recipe_sections`, and of parts about
evaluations (`eval.report`); a pipeline composes its own page of any of them. So that a page of many runs stays one that
a browser opens, a part shows pictures of the first few settings, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from common.reporting.groups import RunGroup, by_setting
from common.reporting.page import Block, Exchange, Exchanges, Figure, Figures, Heading, Section, Text
from common.reporting.plots import plot_bars, plot_curves
from common.reporting.samples import SAMPLES, Sample, Samples, read_samples
from common.reporting.tables import Column, Row, Table, Value

_ORDER = ("vit_classify", "llava", "dreambooth")
Part = Callable[[Sequence[RunGroup], Path], Section | None]
T = TypeVar("T")

SETTINGS, FIGURES = 12, 24  # of which a part shows pictures, and how many pictures of curves
_NAME = 100  # letters of a picture's file
LINES = 8  # in one picture, as many as there are colours and markers

# What a training cost, as against what it achieved: result key -> (heading, decimals, divided by, unit).
_COST: dict[str, tuple[str, int, float, str]] = {
    "trainable_parameters": ("trained parameters", 0, 1, ""),
    "steps": ("steps", 0, 1, ""),
    "samples": ("samples", 0, 1, ""),
    "train_seconds": ("training", 1, 1, " s"),
    "samples_per_second": ("speed", 1, 1, " samples/s"),
    "tokens_per_second": ("tokens", 0, 1, " tokens/s"),
    "peak_memory_bytes": ("peak memory", 0, 2**20, " MiB"),
    "padding_share": ("padding", 1, 0.01, " %"),
}
_SHARES = ("accuracy", "share", "exact")  # ends of the names of metrics in [0, 1], shown in percent
_LOWER = ("loss", "perplexity", "seconds", "share")


def shown(items: Sequence[T], most: int, what: str) -> tuple[Sequence[T], list[Block]]:
    """The first few of many, and a sentence that says so; no sentence where that is all."""
    if len(items) <= most:
        return items, []
    return items[:most], [Text(f"The first {most} of {len(items)} {what}; give fewer paths to see the others.")]


def titled(title: str, several: bool) -> list[Block]:
    """A heading, where there are several things to tell apart."""
    return [Heading(title)] if several else []


def by_task(groups: Sequence[RunGroup]) -> dict[str, list[RunGroup]]:
    """Pipeline -> its groups; the pipelines in the order of the documents."""
    found: dict[str, list[RunGroup]] = {}
    for group in sorted(groups, key=lambda group: _ORDER.index(group.task) if group.task in _ORDER else len(_ORDER)):
        found.setdefault(group.task, []).append(group)
    return found


def results_section(groups: Sequence[RunGroup], plots: Path) -> Section | None:
    """What was measured: a table for every pipeline, and bars of its accuracies."""
    blocks: list[Block] = []
    tasks = by_task(groups)
    for number, (task, members) in enumerate(tasks.items()):
        blocks += titled(task, len(tasks) > 1)
        if bars := _bars(members, plots, f"accuracy_{number}"):
            blocks.append(Figures(bars))
        blocks.append(_measured(members))
    return Section("Result", blocks) if blocks else None


def cost_section(groups: Sequence[RunGroup], plots: Path) -> Section | None:
    """What the trainings took: a table for every pipeline."""
    blocks: list[Block] = []
    tasks = by_task(groups)
    for task, members in tasks.items():
        if costs := _costs(members):
            blocks += [*titled(task, len(tasks) > 1), costs]
    return Section("Cost", blocks) if blocks else None


def _measured(groups: Sequence[RunGroup]) -> Table:
    keys = [key for key in _metric_keys(groups) if key not in _COST and not key.endswith("_per_second")]
    keys = [key for key in keys if not key.startswith("total_") and not key.endswith("_pictures")]  # counts
    columns, rows = _head(groups), []
    for key in keys:
        percent = key.endswith(_SHARES)
        better = "lower" if key.endswith(_LOWER) else "higher" if key.endswith(_SHARES) else None
        # the loss of a training says nothing about which run is better, nor does a number of unknown meaning
        better = None if key.startswith("train_") else better
        columns.append(
            Column(key.replace("_", " ") + (", %" if percent else ""), 2 if percent else 4, better)  # type: ignore[arg-type]
        )
    one_set = len({group.first.results.get("dataset") for group in groups}) == 1
    for group in groups:
        values: list[Value] = _begin(group, groups)
        for key in keys:
            spread = group.metric(key)
            values.append(spread.times(100) if spread and key.endswith(_SHARES) else spread)
        # what is best on one set says nothing about another
        rows.append(Row(tuple(values), "" if one_set else str(group.first.results.get("dataset") or "")))
    several = any(len(group.runs) > 1 for group in groups)
    caption = "As measured at the end of each run" + (", mean ± standard deviation over the seeds" if several else "")
    about = "n: what was tested, or trained on where nothing was tested."
    return Table(columns, rows, f"{caption}; from its results.json. {about}")


def _costs(groups: Sequence[RunGroup]) -> Table | None:
    keys = [key for key in _COST if key in _metric_keys(groups)]
    if not keys:
        return None
    columns = [*_head(groups, ()), *(Column(_COST[key][0], _COST[key][1], None, _COST[key][3]) for key in keys)]
    rows = []
    for group in groups:
        values: list[Value] = _begin(group, groups, ())
        for key in keys:
            spread = group.metric(key)
            whole = spread is not None and _COST[key][1:3] == (0, 1) and not spread.deviation
            if spread is None or (whole and math.isfinite(spread.mean)):
                values.append(int(spread.mean) if spread else None)
            else:
                values.append(spread.times(1 / _COST[key][2]))
        rows.append(Row(tuple(values)))
    caption = "From each run's results.json. Times and memory compare only where the machine was the same: Environment."
    if any("head" in group.first.results for group in groups):
        caption += " The head is trained too and not counted."
    return Table(columns, rows, caption)


def _head(groups: Sequence[RunGroup], counts: Sequence[str] = ("n",)) -> list[Column]:
    columns = [Column("run")]
    if any(group.first.results.get("dataset") for group in groups):
        columns.append(Column("data"))
    return [*columns, *(Column(name, better=None) for name in (*counts, "seeds"))]


def _begin(group: RunGroup, groups: Sequence[RunGroup], counts: Sequence[str] = ("n",)) -> list[Value]:
    results = group.first.results
    values: list[Value] = [group.name]
    if any(other.first.results.get("dataset") for other in groups):
        values.append(_plain(results.get("dataset")))
    return [*values, *(_plain(results.get(key)) for key in counts), len(group.runs)]


def _plain(value: object) -> Value:
    return value if isinstance(value, str | int | float | None) else str(value)


def _metric_keys(groups: Iterable[RunGroup]) -> list[str]:
    """Every single number among the results, in the order in which they were written."""
    found = {
        key: None
        for group in groups
        for key, value in group.first.results["metrics"].items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return list(found)


def _bars(groups: Sequence[RunGroup], plots: Path, name: str) -> list[Figure]:
    """Accuracy of each setting on each data set; none for a single bar."""
    measured = [group for group in groups if group.metric("accuracy") is not None]
    values = {
        setting: {str(group.first.results.get("dataset", group.task)): _numbers(group, "accuracy") for group in members}
        for setting, members in by_setting(measured).items()
    }
    if sum(map(len, values.values())) < 2:
        return []
    several = any(len(group.runs) > 1 for group in groups)
    whisker = "; each dot is a seed, the whisker one standard deviation" if several else ""
    figures = []
    for first in range(0, min(len(values), 3 * LINES), LINES):
        part = dict(list(values.items())[first : first + LINES])
        path = plot_bars(plots / f"{name}_{first}.png", part, ylabel="accuracy")
        caption = f"Accuracy of the finished runs{whisker}."
        figures.append(Figure(path, f"Bars of the accuracy of {', '.join(part)}.", caption))
    return figures


def _numbers(group: RunGroup, key: str) -> list[float]:
    return [float(run.results["metrics"][key]) for run in group.runs]


def training_section(groups: Sequence[RunGroup], plots: Path) -> Section | None:
    """The course of the loss and of every accuracy and evaluation that was logged; pictures for each data set."""
    parts: dict[tuple[str, str], list[RunGroup]] = {}
    for group in groups:
        parts.setdefault((group.task, str(group.first.results.get("dataset", ""))), []).append(group)
    blocks: list[Block] = []
    drawn = 0
    for number, ((task, dataset), members) in enumerate(parts.items()):
        logged = dict.fromkeys(key for group in members for run in group.runs for line in run.metrics for key in line)
        keys = ["loss", *(key for key in logged if key.startswith("eval_") or key.endswith("accuracy"))]
        if drawn >= FIGURES:
            blocks.append(
                Text(f"Curves of the first {number} of {len(parts)} data sets; give fewer paths to see more.")
            )
            break
        figures = [figure for key in dict.fromkeys(keys) for figure in curve_figures(members, plots / str(number), key)]
        drawn += len(figures)
        if figures:
            title = " on ".join(filter(None, (task, dataset)))
            blocks += [*titled(title, len(parts) > 1), Figures(figures[:FIGURES])]
    return Section("Training", blocks) if blocks else None


def curve_figures(groups: Sequence[RunGroup], plots: Path, key: str, label: str | None = None) -> list[Figure]:
    """The course of one logged metric, so many lines to a picture that they can be told apart."""
    logged = [group for group in groups if len(group.course(key)[0]) > 1]
    parts = [logged[first : first + LINES] for first in range(0, len(logged), LINES)]
    name = quote(key, safe="")[-_NAME:]  # no name from a data file leads to another folder
    found = [curve_figure(part, plots, f"{name}_{number}.png", key, label) for number, part in enumerate(parts)]
    return [figure for figure in found if figure is not None]


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
    one = len({group.task for group in groups}) == 1
    courses = {group.name if one else group.label: group.course(key) for group in groups}
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


def samples_section(groups: Sequence[RunGroup], plots: Path) -> Section | None:
    """What each setting's first run shows of itself: pictures with answers, chats, drawn pictures."""
    having = [group for group in groups if group.first.has(SAMPLES)]
    found = [(group, samples) for group in having if (samples := read_samples(group.first.path)) and samples.items]
    some, note = shown(found, SETTINGS, "settings with samples")
    blocks: list[Block] = [*note]
    for group, samples in some:
        blocks += [Heading(f"{group.task}: {group.name}, seed {group.seeds[0]}"), Text(samples.about)]
        blocks += sample_blocks(group.first.path, samples)
    return Section("Samples", blocks) if found else None


def sample_blocks(run: Path, samples: Samples) -> list[Block]:
    """The samples of one run; a picture that is not there any more is said.

    Args:
        run: its directory.
        samples: as they were read.
    """
    gone = [item for item in samples.items if isinstance(item.picture, str) and not (run / item.picture).is_file()]
    blocks: list[Block] = []
    if gone:
        named = ", ".join(str(item.picture) for item in gone[:3])
        blocks.append(Text(f"{len(gone)} of these pictures are not in {run} any more: {named}"))
    if samples.kind == "chat":
        kept = [Exchange(i.question, i.answer, _figure(run, i), i.expected, i.right) for i in samples.items]
        return [*blocks, Exchanges(kept)]
    figures = [figure for item in samples.items if (figure := _figure(run, item))]
    return [*blocks, Figures(figures, 150 if samples.kind == "labels" else 560)] if figures else blocks


def _figure(run: Path, item: Sample) -> Figure | None:
    if not isinstance(item.picture, str) or not (run / item.picture).is_file():
        return None
    if not item.answer:
        return Figure(run / item.picture, f"pictures drawn for “{item.question}”", item.question)
    if item.question:
        return Figure(run / item.picture, f"the picture that “{item.question}” is about")
    verdict = f"✓ {item.answer}" if item.right else f"✗ called {item.answer}, is {item.expected}"
    return Figure(run / item.picture, f"a test picture of {item.expected}", verdict)


def texts(values: Mapping[str, object]) -> dict[str, str]:
    """Those of some facts that are known, as texts."""
    return {name: str(value) for name, value in values.items() if value}
