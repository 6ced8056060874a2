"""Runs that differ in their seed alone, under a name by which a reader tells them from the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from common.config import Method
from common.reporting.labels import method_label
from common.reporting.runs import Run, seed_of, series
from common.reporting.tables import Spread

# Keys, by their last name, in which runs of one group may differ: they say where and when, not what.
_BESIDE = frozenset({"seed", "output", "resume", "overwrite", "cache_dir", "num_workers", "trackers"})
_MOST_KEYS = 3


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
    def seeds(self) -> list[int]:
        """Every run's seed."""
        return [seed_of(run) for run in self.runs]

    def metric(self, name: str) -> Spread | None:
        """Mean and spread over the seeds of one number of the results; None where a run lacks it."""
        values = [run.results["metrics"].get(name) for run in self.runs]
        return Spread.of(map(float, values)) if all(isinstance(value, int | float) for value in values) else None

    def course(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and the mean over the seeds of one logged metric, at the steps that every seed logged."""
        courses = [dict(zip(*series(run.metrics, key), strict=True)) for run in self.runs]
        steps = sorted(set.intersection(*(set(course) for course in courses)))
        return steps, [sum(course[step] for course in courses) / len(courses) for step in steps]


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
    """Put runs together that differ in their seed alone, and give each group a name of its own.

    A name is the method; where that is not enough the data set, then the keys that differ, then the directory.

    Args:
        runs: at least one; the order of the groups is that of their first runs.
    """
    by_recipe: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        recipe = json.dumps([run.results.get("task"), _decisive(run)], sort_keys=True, default=str)
        times, seed = 0, run.results.get("seed")
        # the same seed once more is no further draw of chance
        while any(other.results.get("seed") == seed for other in by_recipe.get((recipe, times), [])):
            times += 1
        by_recipe.setdefault((recipe, times), []).append(run)
    found = [sorted(members, key=lambda run: run.results.get("seed", 0)) for members in by_recipe.values()]
    labels = _labels([members[0] for members in found])
    return [RunGroup(label, tuple(members)) for label, members in zip(labels, found, strict=True)]


def _labels(runs: Sequence[Run]) -> list[str]:
    labels = [_method(run) for run in runs]
    if len({run.results.get("dataset") for run in runs}) > 1:
        labels = [f"{label}, {run.results.get('dataset', '?')}" for label, run in zip(labels, runs, strict=True)]
    for name in (_differing, _directories):
        twice = {label for label, count in Counter(labels).items() if count > 1}
        for label in twice:
            alike = [number for number, other in enumerate(labels) if other == label]
            for number, more in zip(alike, name([runs[number] for number in alike]), strict=True):
                labels[number] = f"{label}, {more}" if more else label
    return labels


def _method(run: Run) -> str:
    method = run.results.get("method") or run.config.get("adapter", {}).get("method")
    return method_label(method) if method in get_args(Method) else str(method or run.results.get("task", "run"))


def _differing(runs: Sequence[Run]) -> list[str]:
    keys = differing_keys([run.config for run in runs])[:_MOST_KEYS]
    short = Counter(key.rpartition(".")[2] for key in keys)
    names = {key: key.rpartition(".")[2] if short[key.rpartition(".")[2]] == 1 else key for key in keys}
    return [", ".join(f"{names[key]}={_decisive(run).get(key)}" for key in keys) for run in runs]


def _directories(runs: Sequence[Run]) -> list[str]:
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys in which recipes differ, those that say only where and when left out."""
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config if key.rpartition(".")[2] not in _BESIDE)
    return [key for key in keys if len({repr(config.get(key)) for config in flat}) > 1]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _decisive(run: Run) -> dict[str, Any]:
    return {key: value for key, value in flatten(run.config).items() if key.rpartition(".")[2] not in _BESIDE}
