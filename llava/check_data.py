"""`mosgoat llava check-data`: verify conversations and pictures before hours are spent on them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser

from common.errors import UserError
from common.files import atomic_write
from common.recipes import hide_sections, parse
from common.reporting.histogram import plot_histogram
from common.words import did_you_mean
from llava.config import DataConfig, LlavaRecipe, ModelConfig, recipe_problems
from llava.conversation import template_for
from llava.data.dataset import Source, count_tokens, open_source
from llava.data.lengths import Coding
from llava.data.pictures import CHECKS, Check
from llava.data.report import DataReport, FileReport, histogram
from llava.model_files import find_folder
from llava.model_tokens import make_vocabulary, open_tokenizer

PROG = "mosgoat llava check-data"
_OWN = ("--workers", "--output", "--pictures")
_SHARED = ("--data.", "--model.name", "--model.language_model", "--config", "--help", "-h")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit status 1 if a conversation has to be left out."""
    words = list(argv or [])
    if {"--help", "-h"} & set(words):
        _help_parser().print_help()
        return 0
    own, rest = _own_options(words)
    for word in rest:
        if word.startswith("-") and not word.startswith(_SHARED):
            raise UserError(f"{PROG} has no option {word}; {did_you_mean(word, [*_OWN, *_SHARED[:4]])}")
    recipe = parse(rest, LlavaRecipe, prog=PROG, problems=_data_problems)
    report = check(recipe, pictures=own.pictures, workers=own.workers)
    print(report)
    if own.output is not None:
        write(report, Path(own.output))
        print(f"\nreport.json and lengths.png are in {own.output}")
    return int(bool(report.skipped))


def check(recipe: LlavaRecipe, *, pictures: Check = "decode", workers: int | None = None) -> DataReport:
    """Verify the files of a recipe's data section; what is found is kept for the training.

    Args:
        recipe: its sections data and, for lengths in tokens, model (`name` or `language_model`) count.
        pictures: how closely to look at the pictures.
        workers: processes; none given: all cores.

    Raises:
        UserError: a file cannot be used at all.
    """
    coding = _coding(recipe)
    found = []
    for key, path in (("data.path", recipe.data.path), ("data.validation_path", recipe.data.validation_path)):
        if path is not None:
            source = open_source(recipe.data, path, key, check=pictures, workers=workers)
            found.append(_measured(recipe.data, source, key, coding, workers))
    return DataReport(*found)


def write(report: DataReport, folder: Path) -> None:
    """Put `report.json` and a picture of the lengths of the training file into a folder.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / "report.json", report.to_json() + "\n")
        lengths, unit = report.train.lengths, report.train.unit
        _, median, most_of, _ = lengths["percentiles_0_50_95_100"]
        plot_histogram(
            folder / "lengths.png",
            lengths["edges"],
            lengths["counts"],
            xlabel=f"length of a conversation ({unit})",
            ylabel="conversations",
            limits=[(median, f"half of them: up to {median:,}"), (most_of, f"95 %: up to {most_of:,}")],
        )
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written: {error.strerror or error}") from error


def _measured(config: DataConfig, source: Source, key: str, coding: Coding | None, workers: int | None) -> FileReport:
    """The report of a source with lengths in text tokens, or in words where no model is named."""
    if coding is not None:
        count_tokens(config, source, key, coding, workers)
        source.report.unit = "text tokens"
        return source.report
    bad, words = source.verified.problems, []
    for images, counts in zip(source.rows.batches("image"), source.rows.batches("words"), strict=True):
        words += [count for image, count in zip(images, counts, strict=True) if image not in bad]
    source.report.lengths, source.report.unit = histogram(np.array(words)), "words"
    return source.report


def _coding(recipe: LlavaRecipe) -> Coding | None:
    """How the recipe's model turns text into tokens; None where it names none."""
    for key in ("name", "language_model"):
        name = getattr(recipe.model, key)
        if name is not None:
            tokenizer = open_tokenizer(f"model.{key}", find_folder(f"model.{key}", name))
            vocabulary = make_vocabulary(tokenizer, len(tokenizer))
            tokenizer = vocabulary.tokenizer
            template = template_for(recipe.data.template, tokenizer)
            return Coding(tokenizer, template, vocabulary.image_token_id, 0, recipe.data.max_text_tokens)
    print("no model is named (model.name or model.language_model): lengths are counted in words", file=sys.stderr)
    return None


def _data_problems(recipe: LlavaRecipe) -> list[str]:
    return [problem for problem in recipe_problems(recipe) if problem.startswith("data.")]


def _own_options(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--output")
    parser.add_argument("--pictures", choices=CHECKS, default="decode")
    try:
        own, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UserError(f"{PROG}: {error}") from None
    if own.workers is not None and own.workers < 0:
        raise UserError(f"--workers {own.workers} must not be negative")
    return own, rest


def _help_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog=PROG,
        description="Verify conversations and their pictures with all cores. What is found is kept, and used by the "
        "training; a check that was interrupted goes on. Exit status 1 if a conversation has to be left out.",
    )
    parser.add_argument("--config", metavar="RECIPE", help="a recipe (YAML); its sections data and model count")
    parser.add_argument("--pictures", choices=CHECKS, default="decode", help="unpack them, read headers, or do neither")
    parser.add_argument("--workers", type=int, help="processes; none given: all cores")
    parser.add_argument("--output", metavar="DIR", help="where to put report.json and lengths.png")
    parser.add_class_arguments(DataConfig, "data")
    for key in ("name", "language_model"):
        text = "counts lengths in its tokens; without a model they are counted in words"
        parser.add_argument(f"--model.{key}", type=type(getattr(ModelConfig(), key) or ""), help=text)
    hide_sections(parser)
    return parser
