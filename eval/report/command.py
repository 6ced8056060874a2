"""`mosgoat report`: one self-contained HTML page about runs and evaluations of any pipelines."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from common.errors import UserError
from common.reporting.adapter_sections import adapter_section, confusion_section, router_section
from common.reporting.page import Page, Section, Text, without_broken, write_page
from common.reporting.recipe_sections import environment_section, recipe_section
from common.reporting.sections import (
    Part,
    cost_section,
    results_section,
    samples_section,
    training_section,
)
from common.words import counted, listed
from eval.report import benchmarks, classification, subjects
from eval.report.find import IMAGES, Check, Material, find
from eval.report.parameters import parameters_section
from eval.report.pictures import pictures_section
from eval.report.reproduce import reproduce_section

PROG = "mosgoat report"
_CHECKS: dict[str, Check] = {
    IMAGES: lambda each: [classification.evaluations_table([each])],
    benchmarks.TASK: benchmarks.check,
    subjects.TASK: subjects.check,
    subjects.STUDY: lambda each: [subjects.study_table(each)],
}
_PAPERS = (
    "[M]: Wu et al., Mixture-of-Subspaces in Low-Rank Adaptation, arXiv:2406.11909. "
    "[G]: Fan et al., Make LoRA Great Again, arXiv:2502.16894."
)
_SHOWN = 20  # problems that are named one by one
MaterialPart = Callable[[Material, Path], Section | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, write the page, say where it is; exit status 0."""
    parser = argparse.ArgumentParser(PROG, description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="a finished run, the folder of an evaluation or of generated pictures, or a folder under which such lie",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="default: report.html")
    parser.add_argument("--title", help="heading of the page")
    options = parser.parse_args(list(argv or []))
    print(write_report(options.paths, options.output, options.title).resolve())
    return 0


def write_report(paths: Sequence[Path], output: Path, title: str | None = None) -> Path:
    """Write the page; nothing outside it is needed to read it.

    Args:
        paths: runs, evaluations, generated pictures, or folders under which such lie. What is unfinished or damaged in
            such a folder is named on the page and on stderr, and the rest is shown.
        output: the HTML file.
        title: heading; none given: made of what is shown.

    Returns:
        `output`.

    Raises:
        UserError: a path is missing or damaged itself, nothing lies under it, or the page cannot be written.
    """
    if os.path.isdir(output):
        raise UserError(f"--output={output} is a folder; give the path of a file, such as {output / 'report.html'}")
    if os.path.exists(output) and not os.path.isfile(output):
        raise UserError(f"--output={output} is no file that a page could replace; give the path of one")
    material = find(paths, _CHECKS)
    with _drawing() as folder:
        sections = _sections(material, folder)
    for problem in material.problems:
        print(f"left out: {problem}", file=sys.stderr)
    page = Page(
        title=title or _title(material),
        lead=_lead(material),
        sections=sections,
        footer=f"Made by {PROG} on {datetime.now().astimezone():%Y-%m-%d %H:%M %Z} of {listed(paths, 12)}. {_PAPERS}",
    )
    try:
        return write_page(output, page)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error}") from error


@contextlib.contextmanager
def _drawing() -> Iterator[Path]:
    """A folder for the pictures that are drawn for a page; it goes away."""
    try:
        with tempfile.TemporaryDirectory(prefix="mosgoat-") as folder:
            yield Path(folder)
    except OSError as error:
        raise UserError(
            f"the page's pictures could not be drawn: {error}; set TMPDIR to a folder that can be written and has room"
        ) from error


def _sections(material: Material, folder: Path) -> list[Section]:
    """All parts with their pictures read, and behind the first what could not be shown."""
    found = [part(material, folder / str(number)) for number, part in enumerate(PARTS)]
    sections = [
        sound for section in found if section is not None and (sound := without_broken(section, material.problems))
    ]
    problems = _problems_section(material)
    return [*sections[:1], *([problems] if problems else []), *sections[1:]]


def _of_runs(part: Part) -> MaterialPart:
    """A part about runs as one of the whole material; none without runs."""
    return lambda material, plots: part(material.groups, plots) if material.groups else None


def _problems_section(material: Material) -> Section | None:
    if not material.problems:
        return None
    some, more = material.problems[:_SHOWN], len(material.problems) - _SHOWN
    lines = [*some, *([f"and {more} more, which the command has printed"] if more > 0 else [])]
    return Section("Left out", [Text("\n\n".join(lines))])


PARTS: tuple[MaterialPart, ...] = (
    _of_runs(results_section),
    classification.classification_section,
    benchmarks.benchmarks_section,
    subjects.subjects_section,
    subjects.study_section,
    _of_runs(samples_section),
    pictures_section,
    _of_runs(training_section),
    _of_runs(router_section),
    _of_runs(adapter_section),
    _of_runs(confusion_section),
    _of_runs(cost_section),
    parameters_section,
    _of_runs(recipe_section),
    _of_runs(environment_section),
    reproduce_section,
)


def _title(material: Material) -> str:
    labels = [group.label for group in material.groups]
    tasks = ", ".join(dict.fromkeys(group.task for group in material.groups))
    if not labels:
        return listed(dict.fromkeys(each.title for each in material.evaluations), 4) or "Generated pictures"
    return f"{tasks}: {', '.join(labels)}" if len(labels) <= 4 else f"{tasks}: {len(labels)} settings compared"


def _lead(material: Material) -> str:
    runs = sum(len(group.runs) for group in material.groups)
    settings = f" of {len(material.groups)} settings" if len(material.groups) > 1 else ""
    found = [f"{counted(runs, 'finished run')}{settings}"] if runs else []
    found += [counted(len(material.evaluations), "evaluation")] if material.evaluations else []
    found += [counted(len(material.pictures), "set") + " of generated pictures"] if material.pictures else []
    lead = f"{', '.join(found)}. Every figure was measured or logged by them; what is published is marked as such."
    if material.problems:
        lead += f" {counted(len(material.problems), 'thing')} could not be shown: see Left out."
    return lead
