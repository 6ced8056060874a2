"""The outcome of a sweep as table, JSON and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.adapters import GOAT_TABLE_1_PARAMETERS
from common.config import Method
from common.files import atomic_write, write_json
from common.reporting.compare import MeasuredRow, beside_published
from common.reporting.labels import method_label
from common.reporting.plots import plot_bars, plot_curves
from common.reporting.published import load_published
from common.reporting.runs import read_json, read_metrics, series
from common.reporting.tables import Table, render_markdown, render_text
from vit_classify.config import VitRecipe

PUBLISHED = "goat_table1"


@dataclass(frozen=True)
class Outcome:
    """What became of one cell.

    Args:
        dataset: the set.
        method: the method.
        seed: the seed.
        path: the run directory.
        results: the content of `results.json`; None unless the run has finished.
        message: why it failed; empty unless it did.
    """

    dataset: str
    method: Method
    seed: int
    path: str
    results: dict[str, Any] | None = None
    message: str = ""

    @property
    def name(self) -> str:
        """The cell in a message."""
        return f"{self.dataset}/{self.method}/seed{self.seed}"

    @property
    def metrics(self) -> dict[str, Any]:
        """The section `metrics` of the results, empty unless the run has finished."""
        return self.results["metrics"] if self.results else {}


def measured_rows(recipe: VitRecipe, outcomes: Sequence[Outcome]) -> list[MeasuredRow]:
    """One row per method in percent, after a row for the model before training where that was measured."""
    rows = []
    before = {
        outcome.dataset: {0: float(value) * 100}
        for outcome in outcomes
        if (value := accuracy_before(outcome)) is not None
    }
    if before:
        rows.append(MeasuredRow("before training", before, 0.0, ranked=False))
    for method in dict.fromkeys(outcome.method for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.method == method and outcome.results]
        values: dict[str, dict[int, float]] = {}
        for outcome in mine:
            values.setdefault(outcome.dataset, {})[outcome.seed] = float(outcome.metrics["accuracy"]) * 100
        counts = [outcome.metrics.get("trainable_parameters") for outcome in mine]
        rows.append(MeasuredRow(method_label(method), values, params_percent(recipe.model.name, counts)))
    return rows


def accuracy_before(outcome: Outcome) -> float | None:
    """Zero-shot accuracy in [0, 1] that the run measured before it trained."""
    return outcome.metrics.get("zero_shot_accuracy")


def params_percent(model: str, counts: Iterable[Any]) -> float | None:
    """Trained parameters beside the head in percent of the paper's model; None for another model or unlike counts.

    Two decimals are cut off, not rounded, as in the paper's column.

    Args:
        model: `model.name` of the recipe.
        counts: `trainable_parameters` of the runs of one row.
    """
    distinct = set(counts)
    count = distinct.pop() if len(distinct) == 1 else None
    if count is None or not model.startswith("ViT-B-32"):
        return None
    return int(count * 10_000 / GOAT_TABLE_1_PARAMETERS) / 100


def make_table(recipe: VitRecipe, outcomes: Sequence[Outcome]) -> Table:
    """[G] Table 1 with our rows."""
    seeds = len({outcome.seed for outcome in outcomes})
    spread = f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else f", seed {outcomes[0].seed}"
    weights = f" ({recipe.model.weights})" if recipe.model.weights else ""
    heading = f"measured here: {recipe.model.name}{weights}, {recipe.model.head} head, r={recipe.adapter.r}{spread}"
    return beside_published(load_published(PUBLISHED), measured_rows(recipe, outcomes), heading=heading)


def notes(outcomes: Sequence[Outcome]) -> list[str]:
    """What a reader must know before comparing: the warnings about each set's data, and what is missing."""
    found = []
    for outcome in outcomes:
        report = Path(outcome.path) / "data_report.json"
        if outcome.results and report.is_file():
            found += [f"{outcome.dataset}: {warning}" for warning in read_json(report).get("warnings", [])]
    missing = [outcome.name for outcome in outcomes if outcome.results is None and not outcome.message]
    found += [f"not run yet: {', '.join(missing)}"] if missing else []
    return list(dict.fromkeys(found))


def print_table(output: Path, recipe: VitRecipe, outcomes: Sequence[Outcome]) -> None:
    """Print the table with its notes, and where the files are."""
    print(f"\n{render_text(make_table(recipe, outcomes))}\n")
    for note in notes(outcomes):
        print(f"note: {note}")
    print(f"written to {output}: table.md, table.json, plots/")


def write_tables(output: Path, recipe: VitRecipe, outcomes: Sequence[Outcome]) -> None:
    """Write `table.md` and `table.json` of all that has finished."""
    table = make_table(recipe, outcomes)
    output.mkdir(parents=True, exist_ok=True)
    failed = [f"failed: {outcome.name}: {outcome.message}" for outcome in outcomes if outcome.message]
    lines = [render_markdown(table), "", *(f"- {' '.join(note.split())}" for note in [*notes(outcomes), *failed])]
    atomic_write(output / "table.md", "\n".join(lines).rstrip() + "\n")
    cells = [
        {**asdict(outcome), "path": _relative(outcome.path, output), "status": _status(outcome)} for outcome in outcomes
    ]
    write_json(
        output / "table.json",
        {
            "task": "vit_classify sweep",
            "columns": [column.name for column in table.columns],
            "rows": [{"group": row.group, "values": [_plain(value) for value in row.values]} for row in table.rows],
            "cells": cells,
        },
    )


def _status(outcome: Outcome) -> str:
    return "failed" if outcome.message else "finished" if outcome.results else "not run"


def _relative(path: str, output: Path) -> str:
    return Path(path).relative_to(output).as_posix() if Path(path).is_relative_to(output) else path


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "deviation") else value


def write_plots(output: Path, outcomes: Sequence[Outcome]) -> None:
    """Write `plots/`: accuracy of every method and set, and the loss curves of each set (first seed)."""
    done = [outcome for outcome in outcomes if outcome.results]
    if not done:
        return
    bars: dict[str, dict[str, list[float]]] = {}
    for outcome in done:
        by_set = bars.setdefault(method_label(outcome.method), {})
        by_set.setdefault(outcome.dataset, []).append(float(outcome.metrics["accuracy"]))
    before = {o.dataset: float(value) for o in done if (value := accuracy_before(o)) is not None}
    plot_bars(output / "plots" / "accuracy.png", bars, reference=before, svg=True)
    for dataset in dict.fromkeys(outcome.dataset for outcome in done):
        curves = {}
        for outcome in done:
            if outcome.dataset == dataset and method_label(outcome.method) not in curves:
                course = series(read_metrics(Path(outcome.path) / "metrics.jsonl"), "loss")
                curves[method_label(outcome.method)] = course
        if any(steps for steps, _ in curves.values()):
            plot_curves(output / "plots" / f"loss_{dataset}.png", curves, ylabel=f"training loss on {dataset}")
