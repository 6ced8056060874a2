"""Runs that differ in their seed alone, under a name by which a reader tells them from the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

from common.config import Method
from common.recipe_keys import flatten
from common.reporting.labels import method_label
from common.reporting.runs import Run, seed_of, series
from common.reporting.tables import Spread

# Keys, by their last name, in which runs of one group may differ: they say where and when, not what.
_BESIDE = frozenset({"seed", "output", "resume", "overwrite", "cache_dir", "num_workers", "trackers"})
_MOST_KEYS, _MOST_LETTERS = 3, 32
T = TypeVar("T")


@dataclass(frozen=True)
class RunGroup:
    """Finished runs of one recipe, one for each seed.

    Args:
        label: unique on the page.
        runs: in the order of their seeds.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run that pictures of a single one are of."""
        return self.runs[0]

    @property
    def task(self) -> str:
        """The pipeline."""
        return str(self.first.results.get("task", "run"))

    @property
    def name(self) -> str:
        """The label where the pipeline is known: without it."""
        return self.label.replace(f", {self.task}", "", 1)

    @property
    def seeds(self) -> list[int]:
        """Every run's seed."""
        return [seed_of(run) for run in self.runs]

    def metric(self, name: str) -> Spread | None:
        """Mean and spread over the seeds of one number of the results; None where a run lacks it."""
        values = [run.results["metrics"].get(name) for run in self.runs]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        return Spread.of(map(float, values)) if numbers else None

    def course(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and the mean over the seeds of one logged metric, at the steps that every seed logged."""
        courses = [dict(zip(*series(run.metrics, key), strict=True)) for run in self.runs]
        steps = sorted(set.intersection(*(set(course) for course in courses)))
        return steps, [sum(course[step] for course in courses) / len(courses) for step in steps]


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
    """Put runs together that differ in their seed alone, and give each group a name of its own.

    A name is the method; where that is not enough the pipeline, the data set, the keys that tell the runs apart, the
    directory.

    Args:
        runs: at least one; the order of the groups is that of their first runs.
    """
    alike = _alike(
        runs,
        lambda run: [run.results.get("task"), _decisive(run)],
        lambda run: run.results.get("seed"),  # the same seed once more is no further draw of chance
    )
    found = [sorted(members, key=lambda run: run.results.get("seed", 0)) for members in alike]
    labels = _labels([members[0] for members in found])
    return [RunGroup(label, tuple(members)) for label, members in zip(labels, found, strict=True)]


def by_setting(groups: Sequence[RunGroup]) -> dict[str, list[RunGroup]]:
    """Put groups together that differ in their data set alone: a row of a table whose columns are data sets.

    Args:
        groups: of one pipeline.

    Returns:
        Name of the setting -> its groups, at most one for each data set.
    """
    found = _alike(
        groups,
        lambda group: _decisive(_without_data(group.first)),
        lambda group: group.first.results.get("dataset"),
    )
    names = _labels([_without_data(members[0].first) for members in found])
    return dict(zip(names, found, strict=True))


def _alike(items: Sequence[T], what: Callable[[T], Any], differs: Callable[[T], Any]) -> list[list[T]]:
    """Put items together that are the same `what`; of those that are the same in `differs` too, each has its own."""
    found: dict[tuple[str, int], list[T]] = {}
    for item in items:
        key, times = json.dumps(what(item), sort_keys=True, default=str), 0
        while any(differs(other) == differs(item) for other in found.get((key, times), [])):
            times += 1
        found.setdefault((key, times), []).append(item)
    return list(found.values())


def _without_data(run: Run) -> Run:
    config = {key: value for key, value in run.config.items() if key != "data"}
    return replace(run, config=config, results={**run.results, "dataset": None})


def _labels(runs: Sequence[Run]) -> list[str]:
    labels = [_method(run) for run in runs]
    for name in (_pipelines, _datasets, _differing, _directories):
        twice = {label for label, count in Counter(labels).items() if count > 1}
        for label in twice:
            alike = [number for number, other in enumerate(labels) if other == label]
            for number, more in zip(alike, name([runs[number] for number in alike]), strict=True):
                labels[number] = f"{label}, {more}" if more else label
    return labels


def _pipelines(runs: Sequence[Run]) -> list[str]:
    tasks = [str(run.results.get("task", "")) for run in runs]
    return tasks if len(set(tasks)) > 1 else [""] * len(runs)


def _datasets(runs: Sequence[Run]) -> list[str]:
    names = [str(run.results.get("dataset") or "") for run in runs]
    return names if len(set(names)) > 1 else [""] * len(runs)


def _method(run: Run) -> str:
    method: Any = run.results.get("method") or run.section("adapter").get("method")
    return method_label(method) if method in get_args(Method) else str(method or run.results.get("task", "run"))


def _differing(runs: Sequence[Run]) -> list[str]:
    keys = _telling(differing_keys([run.config for run in runs]), [_decisive(run) for run in runs])
    short = Counter(key.rpartition(".")[2] for key in keys)
    names = {key: key.rpartition(".")[2] if short[key.rpartition(".")[2]] == 1 else key for key in keys}
    recipes = [_decisive(run) for run in runs]
    return [
        ", ".join(f"{names[key]}={_shortened(recipe[key])}" for key in keys if recipe.get(key) is not None)
        for recipe in recipes
    ]


def _telling(keys: Sequence[str], recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The few keys that tell most of the recipes apart, each chosen for what those before it leave alike."""
    chosen: list[str] = []

    def kinds(names: Sequence[str]) -> int:
        return len({tuple(repr(recipe.get(name)) for name in names) for recipe in recipes})

    while len(chosen) < _MOST_KEYS and kinds(chosen) < len(recipes):
        best = max(keys, key=lambda key: kinds([*chosen, key]), default=None)  # of equals the first in the recipe
        if best is None or kinds([*chosen, best]) == kinds(chosen):
            break
        chosen.append(best)
    return chosen


def _shortened(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)  # the end of a path tells more than its beginning
    return text if len(text) <= _MOST_LETTERS else f"…{text[1 - _MOST_LETTERS :]}"


def _directories(runs: Sequence[Run]) -> list[str]:
    names = [run.path.resolve().name for run in runs]
    names = names if len(set(names)) == len(names) else [str(run.path) for run in runs]
    return [name.encode(errors="backslashreplace").decode() for name in names]  # fonts have no letter for other bytes


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys in which recipes differ, those that say only where and when left out."""
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config if key.rpartition(".")[2] not in _BESIDE)
    return [key for key in keys if len({repr(config.get(key)) for config in flat}) > 1]


def _decisive(run: Run) -> dict[str, Any]:
    return {key: value for key, value in flatten(run.config).items() if key.rpartition(".")[2] not in _BESIDE}
