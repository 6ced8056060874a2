"""`mosgoat vit demo`: teach a small model new signs with several adapters, and show the result.

Every run is an ordinary `mosgoat vit train` run of `vit_classify/recipes/tiny.yaml` with another method and seed.
Finished runs are kept: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from common.config import OPTIONS, Method
from common.errors import UserError
from common.recipes import load
from common.reporting.labels import method_label
from common.words import did_you_mean
from vit_classify.config import VitRecipe, recipe_problems
from vit_classify.data import open_data
from vit_classify.demo.report import write_report
from vit_classify.demo.workers import default_jobs, run_cells
from vit_classify.sweep import Cell, make_cells, plan
from vit_classify.sweep_table import Outcome

PROG = "mosgoat vit demo"
RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "tiny.yaml"
METHODS: tuple[Method, ...] = ("linear_probe", "lora", "moslora", "goat")
# The best of one grid for every method, on drawings used for nothing else: `python -m vit_classify.demo.tune`.
# GOAT's stands in the recipe; a method that was not tuned gets that one too.
LEARNING_RATES: dict[str, float] = {"linear_probe": 3e-2, "lora": 1e-2, "moslora": 1e-2}
PURPOSE = {
    "linear_probe": "the baseline: a new head on the frozen model",
    "lora": "one low-rank update of every layer",
    "moslora": "LoRA with a trained mixer between its two factors",
    "goat": "routed low-rank experts, started from segments of the weights' singular vectors",
}


@dataclass(frozen=True)
class Options:
    """The command line, checked."""

    output: Path
    methods: tuple[Method, ...]
    seeds: int
    only: str | None
    jobs: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, then write and print the report.

    Returns:
        0, or 1 if a run failed.
    """
    options = read_arguments(list(argv or []))
    cells = demo_cells(options)
    outcomes = plan(cells)
    if options.only != "report":
        outcomes = train_missing(options, cells, outcomes)
    failed = {_name(cell): outcome.message for cell, outcome in zip(cells, outcomes, strict=True) if outcome.message}
    if options.only != "runs":
        report(options, cells, outcomes, failed)
    for name, message in failed.items():
        print(f"failed: {name}: {message}")
    return 1 if failed else 0


def read_arguments(argv: Sequence[str]) -> Options:
    """The command line.

    Raises:
        UserError: an unknown method, or an impossible number of seeds.
    """
    parser = argparse.ArgumentParser(PROG, description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False)
    default = Path("runs/demo-vit")
    parser.add_argument("--output", type=Path, default=default, help=f"folder to make; default: {default}")
    parser.add_argument(
        "--methods", default=",".join(METHODS), help=f"separated by commas; default: {','.join(METHODS)}"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of every method; default: 3")
    parser.add_argument("--only", choices=("runs", "report"), help="train without a report, or report on what is there")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: one per core, at most 4")
    options = parser.parse_args(argv)
    for key in ("seeds", "jobs"):
        value = getattr(options, key)
        if value is not None and value < 1:
            raise UserError(f"--{key}={value} must be at least 1")
    methods = list(dict.fromkeys(word.strip() for word in options.methods.split(",") if word.strip()))
    for word in methods:
        if word not in OPTIONS:
            raise UserError(f"--methods names {word!r}, which is no method; {did_you_mean(word, OPTIONS)}")
    if not methods:
        raise UserError(f"--methods={options.methods!r} names nothing; separate names by commas")
    return Options(
        options.output, cast("tuple[Method, ...]", tuple(methods)), options.seeds, options.only, options.jobs
    )


def demo_cells(options: Options) -> list[Cell]:
    """All runs, seed by seed, so that a demo that is stopped has tried every method."""
    base = load(RECIPE, VitRecipe, problems=recipe_problems)
    base = replace(base, data=replace(base.data, cache_dir=str(options.output / "cache")))
    cells = []
    for seed in range(options.seeds):
        for method in options.methods:
            rate = LEARNING_RATES.get(method, base.train.learning_rate)
            recipe = replace(base, train=replace(base.train, learning_rate=rate))
            cells += make_cells(recipe, [method], [base.data.name], [seed], options.output / "runs")
    return cells


def train_missing(options: Options, cells: Sequence[Cell], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Train the runs that have no result yet; a run that fails is named and the others go on."""
    done = list(outcomes)
    missing = [number for number, outcome in enumerate(outcomes) if outcome.results is None]
    kept = f", {len(cells) - len(missing)} of them finished before" if len(missing) < len(cells) else ""
    print(f"{len(cells)} runs{kept}: {len(options.methods)} methods x {options.seeds} seeds, into {options.output}")
    if not missing:
        return done
    for method in options.methods:
        print(f"  {method_label(method):<14}{PURPOSE.get(method, 'see docs/adapters.md')}")
    jobs = options.jobs or default_jobs(len(missing))
    print(f"{jobs} at a time; a run takes some 10 to 40 seconds of a core", flush=True)
    open_data(cells[0].recipe.data)  # builds the cache once, before several runs want it
    spent: dict[str, list[float]] = {}
    for count, ended in enumerate(run_cells([cells[number] for number in missing], options.output / "logs", jobs), 1):
        number = missing[ended.number]
        done[number] = ended.outcome
        spent.setdefault(cells[number].method, []).append(ended.seconds)
        left = [cells[other].method for other in missing if done[other] is outcomes[other]]
        line = f"[{count}/{len(missing)}] {_name(cells[number])}: {_result(ended.outcome)} after {ended.seconds:.0f} s"
        print(line + forecast(spent, left, jobs), flush=True)
    return done


def _result(outcome: Outcome) -> str:
    if outcome.results is None:
        return f"failed ({outcome.message})"
    return f"test accuracy {100 * outcome.metrics['accuracy']:.1f} %"


def forecast(spent: Mapping[str, Sequence[float]], left: Sequence[str], jobs: int) -> str:
    """Time left, from the runs so far: of the same method where there are any, else of the slowest."""
    if not left:
        return ""
    mean = {method: sum(times) / len(times) for method, times in spent.items()}
    seconds = sum(mean.get(method, max(mean.values())) for method in left) / min(jobs, len(left))
    return f"; about {seconds / 60:.1f} min left" if seconds >= 90 else f"; about {seconds:.0f} s left"


def report(options: Options, cells: Sequence[Cell], outcomes: Sequence[Outcome], failed: dict[str, str]) -> None:
    """Write and print the report on the finished runs.

    Raises:
        UserError: no run has finished.
    """
    paths: dict[str, dict[int, Path]] = {}
    for method in options.methods:
        for cell, outcome in zip(cells, outcomes, strict=True):
            if cell.method == method and outcome.results is not None:
                paths.setdefault(method, {})[cell.seed] = cell.path
    if not paths:
        raise UserError(
            f"no run under {options.output} has finished, so there is nothing to report; see {options.output}/logs"
        )
    untuned = [method for method in options.methods if method not in METHODS]
    written = write_report(options.output, paths, failed, untuned)
    print(f"\n{written}\n\nPictures and table: {written.page.resolve()}")


def _name(cell: Cell) -> str:
    return f"{method_label(cell.method)}, seed {cell.seed}"
