"""The report of a run's data: printed, kept in the run, and compared when the run goes on."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sized
from typing import Any, Protocol

from common.errors import UserError
from common.files import atomic_write
from common.reporting.runs import read_json
from common.training.run import RunDirectory


class Report(Protocol):
    """What a pipeline found when it opened its data; printable."""

    @property
    def content(self) -> str:
        """Hash of what is trained on."""

    @property
    def counts(self) -> Mapping[str, Any]:
        """Number of samples by split or source."""

    @property
    def skipped(self) -> Sized:
        """What was left out."""

    def to_json(self) -> str:
        """All of it."""


def keep_report(report: Report, run: RunDirectory, what: str) -> None:
    """Print and keep the report; for the main process.

    Args:
        report: of the data as it is now.
        run: the run that is trained on it.
        what: what the data consists of, in the plural, for messages.

    Raises:
        UserError: the run began with other data.
    """
    print(report, file=sys.stderr, flush=True)
    file = run.path / "data_report.json"
    if run.state == "resumed" and file.is_file():
        before = read_json(file)
        if before.get("content", report.content) != report.content:
            raise UserError(
                f"the {what} have changed since {run.path} began: {before.get('counts')} with "
                f"{len(before.get('skipped', []))} left out then, {dict(report.counts)} with "
                f"{len(report.skipped)} left out now. A run that has seen both would match neither: put the "
                f"old {what} back, or begin anew with another output or overwrite=true"
            )
    atomic_write(file, report.to_json() + "\n")
