"""`mosgoat llava demo`: teach a small LLaVA that describes pictures to answer questions about them.

The run is an ordinary `mosgoat llava train` run of `llava/recipes/tiny.yaml`. What is finished is kept: the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.config import with_method
from common.errors import UserError
from common.files import write_json
from common.recipes import load
from common.reporting.runs import read_json
from common.write_errors import writing_is_explained
from llava.config import LlavaRecipe, recipe_problems
from llava.demo import drawn_sets
from llava.demo.measure import Measured, measure
from llava.demo.page import summary, write_demo_page
from llava.model import load_model, load_run
from llava.train import train

PROG = "mosgoat llava demo"
RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "tiny.yaml"
METHODS = ("moslora", "lora", "goat")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the base, train, measure again, write the page; exit status 0."""
    parser = argparse.ArgumentParser(PROG, description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("runs/demo-llava"), help="default: runs/demo-llava")
    parser.add_argument("--method", default="moslora", choices=METHODS, help="adapter; default: moslora")
    parser.add_argument("--steps", type=int, help="optimizer steps; default: those of the recipe")
    options = parser.parse_args(argv)
    recipe = demo_recipe(options.output, options.method, options.steps)
    _make(options.output)
    folder = drawn_sets(recipe.data.cache_dir)
    explained = writing_is_explained(options.output)

    before_file, after_file = options.output / "before.json", options.output / "after.json"
    base = load_model(recipe.model, template=recipe.data.template)
    if not before_file.is_file() or read_json(before_file).get("base") != base.fingerprint:
        _say("1 of 3  what does the base know? It has learnt to describe scenes and was never asked a question")
        known = measure(base, folder, description="before").to_json()
        explained(write_json)(before_file, known | {"base": base.fingerprint})
    _say(f"2 of 3  training {options.method} on questions about other pairs of colour and shape than the test's")
    results = train(recipe)
    _say("3 of 3  the same test questions again")
    after = measure(load_run(Path(str(recipe.output))), folder, description="after")
    explained(write_json)(after_file, after.to_json())

    before = Measured.of_json(read_json(before_file))
    page = explained(write_demo_page)(options.output, folder, before, after, results, recipe)
    print(summary(before, after))
    print(f"the page: {page}")
    return 0


def demo_recipe(output: Path, method: str, steps: int | None) -> LlavaRecipe:
    """The tiny recipe with the method and the place of a demo.

    Raises:
        UserError: fewer steps than the warm-up.
    """
    recipe = load(RECIPE, LlavaRecipe, problems=recipe_problems)
    if steps is not None and steps <= recipe.train.warmup_steps:
        raise UserError(f"--steps {steps} must be more than the {recipe.train.warmup_steps} of the warm-up")
    adapter = with_method(recipe.adapter, method)  # type: ignore[arg-type]
    return replace(
        recipe,
        adapter=adapter,
        train=replace(recipe.train, max_steps=steps if steps is not None else recipe.train.max_steps),
        output=str(output / method),
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made: {error.strerror}; give another folder") from None


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)
