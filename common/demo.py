"""`mosgoat demo`: the main job of every pipeline on embedded models and data, one stage after another.

Every stage is a command of its own in a process of its own: what fails is named, and the others still run. What a
stage has finished is kept, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.config import did_you_mean
from common.errors import UserError
from common.reporting.tables import Column, Row, Table, render_text

PROG = "mosgoat demo"


@dataclass(frozen=True)
class Stage:
    """A part of the demo.

    Args:
        name: what `--only` calls it, and its folder.
        command: words of the `mosgoat` command, without `--output FOLDER`.
        purpose: what it shows.
        minutes: about how long it takes on two CPU cores.
    """

    name: str
    command: tuple[str, ...]
    purpose: str
    minutes: float


STAGES = (
    Stage("vision", ("vit", "demo"), "a small vision transformer learns new signs: LoRA, MoSLoRA, GOAT", 3),
    Stage("llava", ("llava", "demo"), "a small vision-language model learns to answer questions", 4),
    Stage("dreambooth", ("dreambooth", "demo"), "a small SDXL learns to draw a new character", 2),
)


@dataclass(frozen=True)
class Ended:
    """How a stage went."""

    stage: Stage
    status: int
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages and say how each went; exit status 0, or 1 if any failed."""
    parser = argparse.ArgumentParser(PROG, description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to make; default: runs/demo")
    parser.add_argument("--only", help="stages to run, separated by commas; default: all of them")
    parser.epilog = "stages: " + "; ".join(f"{stage.name}: {stage.purpose}" for stage in STAGES)
    options = parser.parse_args(list(argv or []))
    stages = choose(options.only)
    _say(f"{len(stages)} stages, about {sum(stage.minutes for stage in stages):.0f} minutes on two CPU cores:")
    for stage in stages:
        print(f"   {stage.name:<12}{stage.purpose} (about {stage.minutes:g} min)", file=sys.stderr)
    ended = [run(stage, number, len(stages), options.output) for number, stage in enumerate(stages, 1)]
    print(f"\n{summary(ended, options.output)}")
    return 1 if any(each.status for each in ended) else 0


def choose(only: str | None) -> list[Stage]:
    """The stages that `--only` names, in the demo's order.

    Raises:
        UserError: an unknown name, or none at all.
    """
    if only is None:
        return list(STAGES)
    names = [stage.name for stage in STAGES]
    wanted = [word.strip() for word in only.split(",") if word.strip()]
    for word in wanted:
        if word not in names:
            raise UserError(f"--only names {word!r}, which is no stage; {did_you_mean(word, names)}")
    if not wanted:
        raise UserError(f"--only={only!r} names nothing; stages: {', '.join(names)}")
    return [stage for stage in STAGES if stage.name in wanted]


def run(stage: Stage, number: int, count: int, output: Path) -> Ended:
    """Run a stage in a process of its own, which prints as it goes."""
    words = [*stage.command, "--output", str(output / stage.name)]
    _say(f"stage {number} of {count}: {stage.purpose} (mosgoat {' '.join(words)})")
    began = time.monotonic()
    status = subprocess.run([sys.executable, "-m", "common.cli", *words], check=False).returncode
    if status in (130, -2):  # the user has interrupted it, and means the whole
        raise KeyboardInterrupt
    return Ended(stage, status, time.monotonic() - began)


def summary(ended: Sequence[Ended], output: Path) -> str:
    """A table of the stages, and what to do about those that failed."""
    rows = []
    for each in ended:
        page = output / each.stage.name / "report.html"
        outcome = "done" if each.status == 0 else f"failed (exit status {each.status})"
        rows.append(Row((each.stage.name, outcome, each.seconds, str(page) if page.is_file() else None)))
    columns = [Column("stage"), Column("outcome"), Column("seconds", 0, None), Column("page")]
    lines = [render_text(Table(columns, rows, ""))]
    failed = [each.stage.name for each in ended if each.status]
    if failed:
        again = f"mosgoat demo --output {output} --only {','.join(failed)}"
        lines.append(f"what a failed stage printed stands above; after mending it: {again}")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)
