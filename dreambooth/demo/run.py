"""`mosgoat dreambooth demo`: teach a small SDXL a drawn character that it has never seen, and show before and after.

Every run is an ordinary `mosgoat dreambooth train` run of `dreambooth/recipes/tiny.yaml`, and the pictures are made by
`mosgoat dreambooth generate`. What is finished is kept: the same command goes on where it was stopped.
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
from common.words import did_you_mean
from common.write_errors import writing_is_explained
from dreambooth import generate_command
from dreambooth.config import DreamboothRecipe, recipe_problems
from dreambooth.demo.builtin import subject_path
from dreambooth.demo.characters import CHARACTERS
from dreambooth.demo.encoder import load_encoder
from dreambooth.demo.measure import measure, real_similarity
from dreambooth.demo.page import Outcome, summary, write_demo_page
from dreambooth.generate_plan import BASE
from dreambooth.train import train

PROG = "mosgoat dreambooth demo"
RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "tiny.yaml"
METHODS = ("moslora", "lora", "goat")
NOISE, STEPS, GUIDANCE, AT_ONCE = 4, 25, 3.0, 24  # pictures of each prompt; of sampling; pictures in a batch


def main(argv: Sequence[str] | None = None) -> int:
    """Train, draw, measure, write the page; exit status 0."""
    options = read_arguments(list(argv or []))
    explained = writing_is_explained(options.output)
    explained(options.output.mkdir)(parents=True, exist_ok=True)
    recipes = demo_recipes(options)
    results = {}
    for number, (name, recipe) in enumerate(recipes.items(), start=1):
        _say(f"{number} of {len(recipes) + 1}  training {name} on {options.subject}")
        results[name] = train(recipe)
    _say(f"{len(recipes) + 1} of {len(recipes) + 1}  the same prompts and the same noise, before and after")
    pictures = options.output / "pictures"
    generate_command.main(
        _generate_words(pictures, {name: Path(str(recipe.output)) for name, recipe in recipes.items()})
    )

    encoder = load_encoder()
    measured = {name: measure(pictures / name / options.subject, encoder) for name in (BASE, *recipes)}
    references = sorted((subject_path() / "dataset" / options.subject).glob("*.png"))
    outcome = Outcome(
        subject=options.subject,
        recipe=next(iter(recipes.values())),
        results=results,
        measured=measured,
        real=real_similarity(references, encoder),
    )
    explained(write_json)(options.output / "measured.json", outcome.to_json())
    page = explained(write_demo_page)(options.output, outcome)
    print(summary(outcome))
    print(f"the page: {page}")
    return 0


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, checked.

    Raises:
        UserError: an unknown method or character, or an impossible number.
    """
    parser = argparse.ArgumentParser(PROG, description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/demo-dreambooth"), help="default: runs/demo-dreambooth"
    )
    parser.add_argument("--subject", default=next(iter(CHARACTERS)), help=f"one of {', '.join(CHARACTERS)}")
    parser.add_argument("--methods", default="moslora,lora", help="adapters; default: moslora,lora")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each method, with different seeds; default: 1")
    parser.add_argument("--steps", type=int, help="optimizer steps; default: those of the recipe")
    options = parser.parse_args(argv)
    options.methods = [name.strip() for name in options.methods.split(",") if name.strip()]
    if options.subject not in CHARACTERS:
        raise UserError(
            f"--subject {options.subject} is no drawn character; {did_you_mean(options.subject, CHARACTERS)}"
        )
    for name in options.methods:
        if name not in METHODS:
            raise UserError(f"--methods: {name} is not in the demo; {did_you_mean(name, METHODS)}")
    if not options.methods:
        raise UserError(f"--methods names no adapter; give some of {', '.join(METHODS)}")
    for name in ("seeds", "steps"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} must be at least 1")
    return options


def demo_recipe(output: Path, subject: str, method: str, seed: int, steps: int | None) -> DreamboothRecipe:
    """The tiny recipe with the method, the character and the place of a demo; the demo draws its own pictures."""
    recipe = load(RECIPE, DreamboothRecipe, problems=recipe_problems)
    return replace(
        recipe,
        data=replace(recipe.data, path="builtin:drawn-subject", subject=subject),
        adapter=with_method(recipe.adapter, method),  # type: ignore[arg-type]
        train=replace(recipe.train, max_steps=steps or recipe.train.max_steps, evaluate_every=0),
        validation=replace(recipe.validation, prompts=None),
        output=str(output),
        seed=seed,
    )


def demo_recipes(options: argparse.Namespace) -> dict[str, DreamboothRecipe]:
    """Name of each run -> its recipe."""
    found = {}
    for method in options.methods:
        for seed in range(options.seeds):
            name = method if options.seeds == 1 else f"{method}-seed{seed}"
            place = options.output / "runs" / name
            found[name] = demo_recipe(place, options.subject, method, seed, options.steps)
    return found


def _generate_words(pictures: Path, runs: dict[str, Path]) -> list[str]:
    words = [
        "--output",
        str(pictures),
        "--base",
        "--overwrite",
        "--run",
        *(f"{name}={path}" for name, path in runs.items()),
    ]
    words += ["--seeds", *map(str, range(NOISE)), "--steps", str(STEPS), "--guidance", str(GUIDANCE)]
    return [*words, "--batch-size", str(AT_ONCE)]


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)
