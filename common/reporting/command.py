"""`mosgoat report`: one self-contained HTML page about any finished runs."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from common.errors import UserError
from common.reporting.groups import RunGroup, group_runs
from common.reporting.page import Page, write_page
from common.reporting.runs import read_run
from common.reporting.sections import STANDARD, Part

PROG = "mosgoat report"


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, write the page, say where it is; exit status 0."""
    parser = argparse.ArgumentParser(PROG, description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a finished run, or several")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="default: report.html")
    parser.add_argument("--title", help="heading of the page")
    options = parser.parse_args(list(argv or []))
    print(write_report(options.runs, options.output, options.title).resolve())
    return 0


def write_report(
    paths: Sequence[Path], output: Path, title: str | None = None, parts: Sequence[Part] = STANDARD
) -> Path:
    """Write the page; nothing outside it is needed to read it.

    Args:
        paths: run directories.
        output: the HTML file.
        title: heading; none given: made of the runs.
        parts: what the page shows, in this order; a part that finds nothing is left out.

    Returns:
        `output`.

    Raises:
        UserError: a directory is no finished run or damaged, or the page cannot be written.
    """
    distinct = list({path.resolve(): path for path in paths}.values())
    if output.is_dir():
        raise UserError(f"--output={output} is a folder; give the path of a file, such as {output / 'report.html'}")
    groups = group_runs([read_run(path) for path in distinct])
    with tempfile.TemporaryDirectory() as folder:
        found = [part(groups, Path(folder)) for part in parts]
        page = Page(
            title=title or _title(groups),
            lead=_lead(groups),
            sections=[section for section in found if section is not None],
            footer=f"Made by {PROG} on {datetime.now().astimezone():%Y-%m-%d %H:%M %Z} of "
            + ", ".join(map(str, distinct)),
        )
        try:
            return write_page(output, page)
        except OSError as error:
            raise UserError(f"--output={output} cannot be written: {error}") from error


def _title(groups: Sequence[RunGroup]) -> str:
    labels = [group.label for group in groups]
    tasks = ", ".join(dict.fromkeys(group.task for group in groups))
    return f"{tasks}: {', '.join(labels)}" if len(labels) <= 4 else f"{tasks}: {len(labels)} settings compared"


def _lead(groups: Sequence[RunGroup]) -> str:
    runs = sum(len(group.runs) for group in groups)
    return (
        f"{runs} finished run{'s' if runs > 1 else ''}"
        + (f" of {len(groups)} settings" if len(groups) > 1 else "")
        + ". Every figure here was measured or logged by the runs themselves."
    )
