"""`mosgoat demo`: the main job of every pipeline on embedded models and data, then every evaluation, then one page.

Every step is a `mosgoat` command in a process of its own: what fails is named, and the others still run. What is
finished is kept, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT
from typing import Literal

from common.cache import require_alone
from common.children import Stopped, run_child
from common.demo_stages import STAGES, Stage, Step
from common.errors import UserError
from common.files import write_json
from common.reporting.tables import Column, Row, Table, render_text
from common.words import did_you_mean
from common.write_errors import writing_is_explained

PROG = "mosgoat demo"
RECORD, LOCK = "demo.json", ".demo.lock"
# -P: a folder called `common` or `eval` where the user stands is not ours
_PROGRAM = (sys.executable, "-P", "-m", "common.cli")
_PACE = (0.25, 8.0)  # how much faster or slower than planned is believed


@dataclass(frozen=True)
class Ended:
    """How a stage went.

    Args:
        stage: which one.
        outcome: `kept`: it was finished before; `left out`: what it needs is not there.
        seconds: that it took now.
        why: of `failed` and `left out`.
    """

    stage: Stage
    outcome: Literal["done", "kept", "failed", "left out"]
    seconds: float = 0.0
    why: str = ""

    @property
    def ran(self) -> bool:
        """Whether its time says how fast this machine is."""
        return self.outcome in ("done", "failed")


@dataclass
class Demo:
    """A demo in its folder.

    Args:
        output: the folder.
        stages: what is to run.
        ended: what has run.
    """

    output: Path
    stages: Sequence[Stage]
    ended: list[Ended] = field(default_factory=list)

    def finished(self) -> set[str]:
        """Commands that were finished in this folder, by an earlier start too."""
        try:
            content = json.loads((self.output / RECORD).read_text(encoding="utf-8"))
            return {str(words) for words in content["finished"]}
        except (OSError, ValueError, KeyError, TypeError):
            return set()  # without a record everything is begun again, and the commands keep what they find

    def note(self, step: Step, done: bool) -> None:
        """Keep in mind that a command is finished, or that it is about to begin anew."""
        own = self._key(step)
        others = self.finished() - {own}
        with writing_is_explained(self.output):
            write_json(self.output / RECORD, {"finished": sorted(others | {own} if done else others)})

    def is_kept(self, step: Step) -> bool:
        """Whether a command was finished, and nothing has changed since."""
        return step.is_made() and self._key(step) in self.finished()

    def _key(self, step: Step) -> str:
        """A command, wherever the folder is."""
        own = f"{self.output}/"
        return shlex.join(f"OUTPUT/{word.removeprefix(own)}" if word.startswith(own) else word for word in step.words)

    def minutes_left(self, number: int) -> float:
        """What the stages from `number` on will take, at the pace of those that have run."""
        planned = 60 * sum(each.stage.minutes for each in self.ended if each.ran)
        pace = sum(each.seconds for each in self.ended if each.ran) / planned if planned else 1.0
        pace = min(max(pace, _PACE[0]), _PACE[1])
        return pace * sum(stage.minutes for stage in self.stages[number:] if not self.was_done(stage))

    def was_done(self, stage: Stage) -> bool:
        """Whether there is nothing left to do."""
        return not stage.again and all(map(self.is_kept, stage.steps(self.output)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages and say how each went.

    Returns:
        0; 1 if a stage failed or could not run; 143 after SIGTERM.
    """
    options = _parser().parse_args(list(argv or []))
    output = options.output if options.output.name else options.output.resolve()  # `.` is no part of a path
    demo = Demo(output, choose(options.only))
    with writing_is_explained(demo.output):
        demo.output.mkdir(parents=True, exist_ok=True)
        lock = (demo.output / LOCK).open("w")
    with lock:
        require_alone(
            lock, f"another `{PROG}` is running in {demo.output}; wait until it has ended, or give another --output"
        )
        with writing_is_explained(demo.output):
            write_json(demo.output / RECORD, {"finished": sorted(demo.finished())})  # that it can be written to, first
        return _run_all(demo)


def _run_all(demo: Demo) -> int:
    _say(_plan(demo))
    began = time.monotonic()
    for number, stage in enumerate(demo.stages):
        try:
            demo.ended.append(run(demo, stage, number, began))
        except Stopped as stopped:
            _say(f"stopped during {stage.name}; what is finished is kept, and the same command goes on")
            if stopped.number == SIGINT:
                raise KeyboardInterrupt from None
            return 128 + stopped.number
    print(f"\n{summary(demo, time.monotonic() - began)}")
    return 1 if any(each.outcome in ("failed", "left out") for each in demo.ended) else 0


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


def run(demo: Demo, stage: Stage, number: int, began: float) -> Ended:
    """Run what is missing of a stage.

    Args:
        demo: what it belongs to.
        stage: which one.
        number: its place among the demo's stages, from 0.
        began: when the demo began, by `time.monotonic`.
    """
    head = f"[{number + 1}/{len(demo.stages)}] {stage.name}"
    if demo.was_done(stage):
        _say(f"{head}: finished before, kept")
        return Ended(stage, "kept")
    problem = missing(demo, stage)
    if problem:
        _say(f"{head}: not run, {problem}")
        return Ended(stage, "left out", why=problem)
    elapsed = f", {_clock(time.monotonic() - began)} elapsed" if number else ""
    left = f"this stage takes {_about(demo.minutes_left(number) - demo.minutes_left(number + 1))}"
    if number + 1 < len(demo.stages):
        left += f", all that is left {_about(demo.minutes_left(number))}"
    _say(f"{head}: {stage.purpose}\n   {left}{elapsed}")
    start = time.monotonic()
    failed = [problem for step in stage.steps(demo.output) if (problem := _run_step(demo, stage, step))]
    seconds = time.monotonic() - start
    _say(f"{head}: {'failed' if failed else 'done'} after {_clock(seconds)}")
    return Ended(stage, "failed" if failed else "done", seconds, "; ".join(failed))


def _run_step(demo: Demo, stage: Stage, step: Step) -> str:
    """Run a command; what went wrong, or nothing."""
    if demo.is_kept(step) and not stage.again:
        print(f"   finished before, kept: {_spoken(step)}", file=sys.stderr, flush=True)
        return ""
    print(f"   {_spoken(step)}", file=sys.stderr, flush=True)
    demo.note(step, done=False)
    try:
        status = run_child([*_PROGRAM, *step.words], environment=_environment())
    except OSError as error:  # no memory or no processes left
        return f"{_spoken(step)} could not be started: {error}"
    if status == 130:  # the user has interrupted the command itself, and means the whole
        raise KeyboardInterrupt
    if status:
        how = f"exit status {status}" if status > 0 else f"killed by signal {-status}, perhaps for memory"
        return f"{how} of {_spoken(step)}"
    lost = [str(path) for path in step.makes if not path.is_file()]
    if lost:
        return f"{_spoken(step)} ended well, but {lost[0]} is not there"
    demo.note(step, done=True)
    return ""


def missing(demo: Demo, stage: Stage) -> str:
    """Why a stage cannot run: what it measures failed, or is not there. Empty: it can."""
    if stage.again:
        return "" if _has_anything(demo) else "nothing of what it is about is there yet"
    if stage.after is None:
        return ""
    failed = any(each.stage.name == stage.after and each.outcome == "failed" for each in demo.ended)
    own = {path for step in stage.steps(demo.output) for path in step.makes}
    needs = [path for step in stage.steps(demo.output) for path in step.needs if path not in own]
    lost = [path for path in needs if not path.is_file()]
    if not failed and not lost:
        return ""
    reason = "which failed" if failed else f"and {lost[0]} is not there"
    return f"it needs {stage.after}, {reason}"


def _has_anything(demo: Demo) -> bool:
    steps = [step for stage in STAGES if not stage.again for step in stage.steps(demo.output)]
    return any(path.is_file() for step in steps for path in step.makes)


def summary(demo: Demo, seconds: float) -> str:
    """A table of the stages, and what to do about those that failed."""
    rows = []
    for each in demo.ended:
        place = demo.output / each.stage.shows
        outcome = {"kept": "kept, finished before", "left out": "not run"}.get(each.outcome, each.outcome)
        took = each.seconds if each.ran else None
        whole = each.outcome in ("done", "kept") and place.exists()
        rows.append(Row((each.stage.name, outcome, took, str(place) if whole else None)))
    columns = [Column("stage"), Column("outcome"), Column("seconds", 0, None), Column("to look at")]
    lines = [render_text(Table(columns, rows, "")), f"\n{_clock(seconds)} in all"]
    for each in demo.ended:
        if each.outcome == "failed":
            lines.append(f"{each.stage.name} failed: {each.why}; what it printed stands above")
        if each.outcome == "left out":
            lines.append(f"{each.stage.name} did not run: {each.why}")
    if again := to_repeat(demo):
        mended = "after mending it" if any(each.outcome == "failed" for each in demo.ended) else "with what it needs"
        command = ["mosgoat", "demo", "--output", str(demo.output)]
        command += ["--only", ",".join(again)] if len(again) < len(STAGES) else []
        lines.append(f"{mended}: {shlex.join(command)}")
    for each in demo.ended:
        if each.stage.again and each.outcome == "done":
            lines.append(f"{each.stage.purpose}: {(demo.output / each.stage.shows).resolve()}")
    return "\n".join(lines)


def to_repeat(demo: Demo) -> list[str]:
    """The stages that failed or did not run, what these need, and what is of all that is there; in order."""
    lacking = [each for each in demo.ended if each.outcome in ("failed", "left out")]
    names = {each.stage.name for each in lacking}
    names |= {each.stage.after for each in lacking if each.outcome == "left out" and each.stage.after}
    if any(each.stage.again and each.outcome == "left out" for each in lacking):
        return [stage.name for stage in STAGES]
    again = {stage.name for stage in demo.stages if stage.again}
    return [stage.name for stage in STAGES if stage.name in names | again] if lacking else []


def _parser() -> argparse.ArgumentParser:
    whole = sum(stage.minutes for stage in STAGES)
    parser = argparse.ArgumentParser(
        PROG,
        description=textwrap.fill(
            "Train small embedded models with all three pipelines, measure them with every evaluation that applies, "
            f"and write one page about it: about {whole:.0f} minutes on two CPU cores, without a GPU, a network or "
            "any file to fetch.",
            100,
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to make; default: runs/demo")
    parser.add_argument("--only", metavar="STAGE,...", help="stages to run, separated by commas; default: all of them")
    lines = [f"  {stage.name:<15}{_about(stage.minutes):>13}   {stage.purpose}" for stage in STAGES]
    parser.epilog = "\n".join(
        [
            "stages, each of them one or several mosgoat commands, which are printed:",
            *lines,
            "",
            "What is finished is kept: the same command goes on where it was stopped. To do a stage again, delete its",
            "folder. Exit status: 0, 1 if a stage failed or what it needs is not there, 130 after Ctrl-C.",
        ]
    )
    return parser


def _plan(demo: Demo) -> str:
    """What will run, what it is for, and how long it takes."""
    left = demo.minutes_left(0)
    lines = [f"{len(demo.stages)} stages into {demo.output}, {_about(left)} on two idle CPU cores:"]
    for stage in demo.stages:
        told = "kept" if demo.was_done(stage) else _about(stage.minutes).removeprefix("about ")
        lines.append(f"   {stage.name:<15}{told:>8}   {stage.purpose}")
    return "\n".join([*lines, "   Ctrl-C stops it, and the same command goes on"])


def _environment() -> dict[str, str]:
    """For the commands: the same code as here, also where it is not installed."""
    paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _spoken(step: Step) -> str:
    return shlex.join(["mosgoat", *step.words])


def _about(minutes: float) -> str:
    return f"about {minutes:.0f} min" if minutes >= 0.95 else f"about {max(10, 10 * round(6 * minutes))} s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min"


def _say(text: str) -> None:
    print(f"\n== {text}", file=sys.stderr, flush=True)
