"""`mosgoat vit prepare`: fetch or verify a picture set and build its cache before a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from common.errors import UserError
from common.recipes import hide_sections, parse
from vit_classify.config import DataConfig, VitRecipe, recipe_problems
from vit_classify.data.registry import SETS
from vit_classify.data.sources import open_sources
from vit_classify.data.splits import DataReport, open_data, passes

PROG = "mosgoat vit prepare"
_OWN = ("--data.", "--config", "--verify", "--help", "--print_config")


def prepare(config: DataConfig) -> DataReport:
    """Fetch a set, build or check its caches, and report what is there."""
    return open_data(config).report


def verify(config: DataConfig) -> list[tuple[Path, str | None]]:
    """Check every hash of a set's caches without building any.

    Returns:
        folder of each cache and what is wrong with it, None where nothing is.
    """
    sources = open_sources(config.name, config.source, SETS.get(config.name))
    found = []
    for task in passes(config, sources).values():
        outcome = task.verify()
        found.append((task.folder, outcome if isinstance(outcome, str) else None))
    return found


def main(argv: Sequence[str]) -> int:
    """The command; exit status 1 if `--verify` found a missing or damaged cache."""
    if {"--help", "-h"} & set(argv):
        _help_parser().print_help()
        return 0
    for word in argv:
        if word.startswith("-") and not word.startswith(_OWN):
            raise UserError(f"{PROG} has no option {word}; it takes --config RECIPE, --data.KEY VALUE and --verify")
    words = [word for word in argv if word != "--verify"]
    config = parse(words, VitRecipe, prog=PROG, problems=recipe_problems).data
    if len(words) == len(argv):
        print(prepare(config))
        return 0
    outcome = verify(config)
    for folder, problem in outcome:
        print(f"{'whole' if problem is None else 'NOT USABLE: ' + problem:<12}  {folder}")
    return int(any(problem is not None for _, problem in outcome))


def _help_parser() -> ArgumentParser:
    parser = ArgumentParser(prog=PROG, description="Fetch or verify a picture set and build its cache.")
    parser.add_argument("--config", metavar="RECIPE", help="a recipe (YAML); its data section counts")
    parser.add_argument("--verify", action="store_true", help="only re-hash the existing caches; status 1 if unsound")
    parser.add_class_arguments(DataConfig, "data")
    hide_sections(parser)
    return parser
