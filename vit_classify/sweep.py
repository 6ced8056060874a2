"""`mosgoat vit sweep`: methods × sets (× seeds), one run directory per cell, then the paper's table with ours.

Every cell is an ordinary run at `OUTPUT/SET/METHOD/seedK`. A sweep that was stopped goes on with the same
command: finished cells are kept, an unfinished one resumes from its newest checkpoint, failed ones are
tried again. Under torchrun all processes train each cell together; only the main one writes and prints.
"""

from __future__ import annotations

import argparse
import gc
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

import torch

from common.config import OPTIONS, Method, with_method
from common.config_checks import require_sound
from common.errors import UserError
from common.recipe_keys import changed_keys
from common.recipes import parse
from common.reporting.runs import read_config, read_json
from common.training import processes
from common.training.run import has_work
from common.words import did_you_mean
from vit_classify import train as training
from vit_classify.config import VitRecipe, recipe_problems, with_places
from vit_classify.sweep_table import Outcome, print_table, write_plots, write_tables

PROG = "mosgoat vit sweep"
# Keys that the sweep itself sets in every cell.
_OWN = ("output", "resume", "overwrite", "seed", "data.name", "adapter.method")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    dataset: str
    method: Method
    seed: int
    recipe: VitRecipe

    @property
    def name(self) -> str:
        """Where the run lies under the sweep's output."""
        return f"{self.dataset}/{self.method}/seed{self.seed}"

    @property
    def path(self) -> Path:
        """The run directory."""
        return Path(cast(str, self.recipe.output))


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, train what is missing, print the table.

    Returns:
        0, or 1 if a cell failed.
    """
    output, cells = read_arguments(list(argv or []))
    return sweep(output, cells)


def read_arguments(argv: Sequence[str]) -> tuple[Path, list[Cell]]:
    """The command line as the cells to run, every recipe checked.

    Raises:
        UserError: an unknown method, an option that the sweep sets itself, or an impossible recipe.
    """
    parser = argparse.ArgumentParser(PROG, description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False)
    parser.usage = (
        f"{PROG} --config BASE.yaml --methods lora,moslora,goat --datasets dtd,gtsrb [--seeds 0,1] --output DIR "
        "[--SECTION.KEY VALUE ...]"
    )
    parser.epilog = (
        "A method takes the base recipe's adapter settings as far as they have an effect on it. In data.source and "
        "data.class_names {name} stands for the set, as in --data.source '/data/{name}'."
    )
    parser.add_argument("--methods", required=True, help="methods, separated by commas")
    parser.add_argument("--datasets", required=True, help="sets, separated by commas")
    parser.add_argument("--seeds", default="0", help="seeds, separated by commas; default: 0")
    parser.add_argument("--output", required=True, type=Path, help="folder of the sweep")
    options, rest = parser.parse_known_args(argv)
    for word in rest:
        key = word.split("=", 1)[0].removeprefix("--")
        if word.startswith("--") and key in _OWN:
            raise UserError(f"--{key} is set by the sweep in each of its runs; use --methods, --datasets and --seeds")
    base = parse(rest, VitRecipe, prog=PROG, problems=lambda _: ())
    methods, datasets = _methods(options.methods), _words("--datasets", options.datasets)
    return options.output, make_cells(base, methods, datasets, _seeds(options.seeds), options.output)


def _words(option: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UserError(f"{option}={text!r} names nothing; separate names by commas")
    return list(dict.fromkeys(words))


def _methods(text: str) -> list[Method]:
    words = _words("--methods", text)
    for word in words:
        if word not in OPTIONS:
            raise UserError(f"--methods names {word!r}, which is no method; {did_you_mean(word, OPTIONS)}")
    assert set(OPTIONS) == set(get_args(Method))
    return cast(list[Method], words)


def _seeds(text: str) -> list[int]:
    words = _words("--seeds", text)
    if not all(word.isdecimal() for word in words):
        raise UserError(f"--seeds={text} must be whole numbers separated by commas, such as 0,1,2")
    return [int(word) for word in words]


def make_cells(
    base: VitRecipe, methods: Sequence[Method], datasets: Sequence[str], seeds: Sequence[int], output: Path
) -> list[Cell]:
    """The recipes of all cells, set by set, so that a set's cache is used while it is warm.

    Raises:
        UserError: a recipe cannot run, or one source is to serve several sets.
    """
    for key in ("source", "class_names"):
        value = getattr(base.data, key)
        if value is not None and "{name}" not in value and len(datasets) > 1:
            raise UserError(
                f"data.{key}={value} is one place for {len(datasets)} sets; put {{name}} where the set's name belongs"
            )
    cells = [
        Cell(dataset, method, seed, cell_recipe(base, dataset, method, seed, output))
        for dataset in datasets
        for method in methods
        for seed in seeds
    ]
    found = (f"{cell.method}: {problem}" for cell in cells for problem in recipe_problems(cell.recipe))
    require_sound(dict.fromkeys(found))
    return cells


def cell_recipe(base: VitRecipe, dataset: str, method: Method, seed: int, output: Path) -> VitRecipe:
    """The base recipe for one set, method and seed; settings without effect on the method are dropped."""
    data = replace(
        base.data,
        name=dataset,
        source=base.data.source and base.data.source.replace("{name}", dataset),
        class_names=base.data.class_names and base.data.class_names.replace("{name}", dataset),
    )
    cell = replace(
        base,
        data=data,
        adapter=with_method(base.adapter, method),
        output=str(output / dataset / method / f"seed{seed}"),
        resume="auto",
        overwrite=False,
        seed=seed,
    )
    return with_places(cell)


def sweep(output: Path, cells: Sequence[Cell]) -> int:
    """Run the cells that are not finished, then write and print the table; a collective call.

    Returns:
        0, or 1 if a cell failed.

    Raises:
        UserError: a run directory holds a run of another recipe.
    """
    processes.start()
    outcomes = processes.on_main(lambda: plan(cells))
    finished = sum(outcome.results is not None for outcome in outcomes)
    _say(f"{len(cells)} runs, {finished} of them finished before; output: {output}")
    for index, cell in enumerate(cells):
        if outcomes[index].results is None:
            _say(f"[{index + 1}/{len(cells)}] {cell.name}")
            outcomes[index] = run_cell(cell)
            if outcomes[index].results is not None:
                _say(f"[{index + 1}/{len(cells)}] {cell.name}: top-1 {outcomes[index].metrics['accuracy']:.2%}")
            # After every cell, so that a long sweep can be watched, and a stopped one leaves its table.
            processes.on_main(lambda: write_tables(output, cells[0].recipe, outcomes))
    processes.on_main(lambda: report(output, cells[0].recipe, outcomes))
    return 1 if any(outcome.message for outcome in outcomes) else 0


def report(output: Path, recipe: VitRecipe, outcomes: Sequence[Outcome]) -> None:
    """Write table and plots and print the table, what failed last; the main process only."""
    write_tables(output, recipe, outcomes)
    write_plots(output, outcomes)
    print_table(output, recipe, outcomes)
    failed = [outcome for outcome in outcomes if outcome.message]
    for outcome in failed:
        print(f"failed: {outcome.name}: {outcome.message}")
    if failed:
        print(f"{len(failed)} of {len(outcomes)} runs failed; the same command tries them again, and only them")


def plan(cells: Sequence[Cell]) -> list[Outcome]:
    """What is there of each cell.

    Raises:
        UserError: a cell's directory holds a run of another recipe; names all such cells and what differs.
    """
    outcomes, changed = [], []
    for cell in cells:
        outcome = Outcome(cell.dataset, cell.method, cell.seed, str(cell.path))
        if (cell.path / "config.yaml").is_file() and has_work(cell.path):
            keys = _differing_keys(cell)
            if keys:
                changed.append(f"{cell.name}: {', '.join(keys)}")
            if (cell.path / "results.json").is_file():
                outcome = replace(outcome, results=read_json(cell.path / "results.json"))
        outcomes.append(outcome)
    if changed:
        raise UserError(
            "the recipe has changed since these runs of the sweep were begun:\n  - "
            + "\n  - ".join(changed)
            + "\nPut the old values back, choose another --output, or delete the folders of these runs."
        )
    return outcomes


def _differing_keys(cell: Cell) -> list[str]:
    changed = changed_keys(read_config(cell.path), cell.recipe)
    return [f"{key} was {old}, is {new}" for key, (old, new) in changed.items()]


def run_cell(cell: Cell) -> Outcome:
    """Train one cell; what goes wrong is recorded, so that the others still run.

    With several processes only errors of the user's making, which all of them meet, are passed over:
    after any other the processes are no longer in step, and torchrun has to end them.
    """
    outcome = Outcome(cell.dataset, cell.method, cell.seed, str(cell.path))
    try:
        return replace(outcome, results=training.train(cell.recipe))
    except UserError as error:
        message = str(error)
    except Exception as error:
        if processes.world_size() > 1:
            raise
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
    finally:
        _release_memory()
    _say(f"failed: {cell.name}: {message}")
    return replace(outcome, message=message)


def _release_memory() -> None:
    # The model of the last cell is in reference cycles; without this the next one needs room for both.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _say(text: str) -> None:
    if processes.is_main():
        print(text, flush=True)
