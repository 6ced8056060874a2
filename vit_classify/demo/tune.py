"""Choose each method's learning rate for the demo, on drawings that are used for nothing else.

    python -m vit_classify.demo.tune --output runs/tune

Draws the new classes once more with another seed, trains every method with every rate of one grid on these
pictures, and prints the test accuracies there. The shipped test pictures take no part. The chosen rates stand in
`vit_classify/demo/run.py`, the table in `vit_classify/demo/README.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.recipes import load
from common.reporting.labels import method_label
from common.reporting.tables import Column, Row, Table, render_markdown
from vit_classify.config import VitRecipe, recipe_problems
from vit_classify.data import open_data
from vit_classify.demo.draw import write
from vit_classify.demo.run import METHODS, RECIPE
from vit_classify.demo.workers import default_jobs, run_cells
from vit_classify.sweep import make_cells

GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TUNING_SEED = 7  # of the drawings; the shipped ones have `draw.SEED`


def main(argv: Sequence[str] | None = None) -> int:
    """Train methods x rates and print the table; exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m vit_classify.demo.tune", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=100, help="of the runs; not among the demo's; default: 100")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: one per core, at most 4")
    arguments = parser.parse_args(argv)
    pictures = arguments.output / "pictures"
    if not pictures.is_dir():
        write(pictures, seed=TUNING_SEED)
    base = load(RECIPE, VitRecipe, problems=recipe_problems)
    base = replace(base, data=replace(base.data, source=str(pictures), cache_dir=str(arguments.output / "cache")))
    cells = []
    for method in METHODS:
        for rate in GRID:
            recipe = replace(base, train=replace(base.train, learning_rate=rate))
            output = arguments.output / f"rate-{rate:g}"
            cells += make_cells(recipe, [method], ["signs-tuning"], [arguments.seed], output)
    open_data(cells[0].recipe.data)  # builds the cache once, before several runs want it
    found: dict[tuple[str, float], float | None] = {}
    for ended in run_cells(cells, arguments.output / "logs", arguments.jobs or default_jobs(len(cells))):
        cell, outcome = cells[ended.number], ended.outcome
        accuracy = 100 * outcome.metrics["accuracy"] if outcome.results else None
        found[cell.method, cell.recipe.train.learning_rate] = accuracy
        print(f"{cell.method}, {cell.recipe.train.learning_rate:g}: {accuracy or outcome.message}", flush=True)
    rows = [Row((method_label(method), *(found[method, rate] for rate in GRID))) for method in METHODS]
    columns = [Column("method"), *(Column(f"learning rate {rate:g}", digits=1, better=None) for rate in GRID)]
    print(render_markdown(Table(columns, rows, "Accuracy on the tuning pictures, %, one seed.")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
