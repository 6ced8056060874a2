"""What a report is made of, found under the paths that it is given: runs, evaluations, generated pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.reporting.groups import RunGroup, group_runs
from common.reporting.recipe_sections import ENVIRONMENT, described, environment_facts
from common.reporting.runs import (
    EVALUATED_LOAD,
    METRICS,
    ROUTER_LOAD,
    Run,
    evaluated_load,
    read_json,
    read_metrics,
    read_results,
    seed_of,
    training_load,
)
from common.reporting.samples import SAMPLES, read_samples
from common.reporting.tables import Table, render_text
from dreambooth.manifest import MANIFEST, read_manifest
from eval.images import PREFIX
from eval.study.export import TASK as STUDY
from eval.subjects.results import TASK as SUBJECTS
from eval.vlm.results import TASK as VLM

IMAGES = "images"
_TITLES = {IMAGES: "eval images", VLM: "eval vlm", SUBJECTS: "eval subjects", STUDY: "eval study"}
_RUN_FOLDERS = frozenset({"adapter", "checkpoints", "plots", "tensorboard", "samples", "validation"})  # no results


@dataclass(frozen=True)
class Evaluation:
    """Results that an evaluation has written.

    Args:
        file: its JSON file.
        kind: `images`, or the task of the results.
        content: of the file.
    """

    file: Path
    kind: str
    content: Mapping[str, Any]

    @property
    def command(self) -> str:
        """What it was made with; empty where the results do not say."""
        return str(self.content.get("command") or "")

    @property
    def title(self) -> str:
        """What made it, for a reader."""
        return _TITLES.get(self.kind, self.kind)


@dataclass
class Material:
    """Everything that a page is made of.

    Args:
        groups: finished runs, those that differ in their seed alone together.
        evaluations: in the order of their files.
        pictures: folders of generated pictures, each with a manifest.
        problems: what was found and cannot be shown, a line each.
    """

    groups: list[RunGroup] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[Evaluation]:
        """The evaluations of one kind."""
        return [each for each in self.evaluations if each.kind == kind]


# The tables that a page shows of it; raises where a content is not what its task says.
Check = Callable[[Evaluation], Sequence[Table]]
# Files that say more about a run than its results do, and what reads each of them.
_DESCRIBING: dict[str, Callable[[Run], object]] = {
    ENVIRONMENT: environment_facts,
    ROUTER_LOAD: lambda run: training_load(run.path / ROUTER_LOAD),
    EVALUATED_LOAD: lambda run: evaluated_load(run.path / EVALUATED_LOAD),
    SAMPLES: lambda run: read_samples(run.path),
}


def find(paths: Sequence[Path], checks: Mapping[str, Check]) -> Material:
    """Find everything under some paths; what lies under two of them counts once.

    Args:
        paths: each a run, a folder of an evaluation, or one under which such lie.
        checks: kind of an evaluation -> a trial use of its content.

    Raises:
        UserError: a path is missing, is itself a damaged or unfinished run, or nothing lies under it.
    """
    found, runs, seen = Material(), list[Run](), set[Path]()
    for path in paths:
        if os.path.isfile(path):
            raise UserError(f"{path} is a file; give the folder of a run or an evaluation, or one that holds such")
        if not os.path.isdir(path):
            raise UserError(f"there is no run or evaluation at {path}; give the folder that --output named")
        before, folders = len(seen), list(_folders(path, found.problems))
        if _is_run(path):
            read_whole(path)  # named by the user: damage is an error, not a remark
        for folder in folders:
            _look(folder, checks, found, runs, seen)
        if len(seen) == before and not any(_is_known(folder, seen) for folder in folders):
            told = f"; {'; '.join(found.problems)}" if found.problems else ""
            raise UserError(f"nothing that can be shown lies under {path}: no finished run, no evaluation{told}")
    found.groups = group_runs(runs) if runs else []
    found.evaluations = [each for each in found.evaluations if not _is_summary(each, found.evaluations)]
    return found


def read_whole(path: Path, damage: list[str] | None = None) -> Run:
    """Read a run with all that a page shows of it, so that damage is found before the page is begun.

    Args:
        path: its directory.
        damage: takes what is wrong with files that only describe the run, which are then passed over; None: they must
            be whole.

    Raises:
        UserError: the run has not finished, or one of its files is damaged.
    """

    def attempt(name: str, read: Callable[[], object]) -> Any:
        try:
            return read()
        except (UserError, OSError) as error:
            why = _unreadable(error) if isinstance(error, OSError) else str(error)
            if damage is None:
                raise UserError(why) from error
            damage.append(why)
            damaged.add(name)
            return None

    damaged = set[str]()
    try:
        run = read_results(path)
    except OSError as error:
        raise UserError(_unreadable(error)) from error
    seed_of(run)
    metrics = attempt(METRICS, lambda: read_metrics(path / METRICS)) or ()
    for name, read in _DESCRIBING.items():
        attempt(name, lambda read=read: read(run))  # type: ignore[misc]
    return replace(run, metrics=metrics, damaged=frozenset(damaged))


def _unreadable(error: OSError) -> str:
    return f"{error.filename} cannot be read: {error.strerror}"


def _look(folder: Path, checks: Mapping[str, Check], found: Material, runs: list[Run], seen: set[Path]) -> None:
    """Add what lies in one folder, not in those below it."""

    def take(file: Path, read: Callable[[], None]) -> None:
        key = file.resolve()
        if key in seen:
            return
        try:
            read()
        except UserError as error:
            found.problems.append(str(error))
        except OSError as error:
            found.problems.append(_unreadable(error))
        else:
            seen.add(key)

    if _is_run(folder):
        take(folder / "config.yaml", lambda: runs.append(read_whole(folder, found.problems)))
    elif os.path.isfile(folder / MANIFEST):
        take(folder / MANIFEST, lambda: found.pictures.append(_pictures(folder)))
    files = [] if _is_run(folder) else sorted(folder.glob("results*.json"))
    for file in [*files, folder / f"{PREFIX}.json"]:
        if os.path.isfile(file):
            take(file, lambda file=file: found.evaluations.append(read_evaluation(file, checks)))  # type: ignore[misc]


def _is_summary(each: Evaluation, among: Sequence[Evaluation]) -> bool:
    """Whether these are results over several benchmarks whose own results are there too."""
    if each.kind != VLM or "benchmark" in each.content:
        return False
    folder, answer = each.file.parent, each.content.get("answer")
    return any(other.file.parent.parent == folder and other.content.get("answer") == answer for other in among)


def _is_known(folder: Path, seen: set[Path]) -> bool:
    names = ("config.yaml", MANIFEST, f"{PREFIX}.json", *(file.name for file in folder.glob("results*.json")))
    return any((folder / name).resolve() in seen for name in names)


def _is_run(folder: Path) -> bool:
    return os.path.isfile(folder / "config.yaml")  # False too where one may not look


def _pictures(folder: Path) -> Path:
    read_manifest(folder)
    return folder


def read_evaluation(file: Path, checks: Mapping[str, Check]) -> Evaluation:
    """Read the results of an evaluation.

    Raises:
        UserError: the file is damaged, or holds results of something else.
    """
    content = read_json(file)
    task = content.get("task") if isinstance(content, dict) else None
    if not isinstance(task, str):
        raise UserError(f"{file} holds no results of mosgoat: it names no task")
    kind = IMAGES if file.name == f"{PREFIX}.json" else task
    if kind not in checks:
        raise UserError(
            f"{file} holds results of {task}, which is no evaluation that this version knows "
            f"({', '.join(_TITLES.values())}); a run has its config.yaml beside them"
        )
    evaluation = Evaluation(file, kind, content)
    try:
        for table in checks[kind](evaluation):
            render_text(table)
        if isinstance(environment := content.get("environment"), dict):
            described(environment)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{file} is not what {_TITLES[kind]} writes ({why}); was it changed?") from error
    return evaluation


def _folders(root: Path, problems: list[str]) -> Iterator[Path]:
    """`root` and every folder below it in sorted order, links and hidden folders left out.

    Args:
        root: where to begin.
        problems: folders that cannot be listed are added to these.
    """
    for parent, names, _ in os.walk(root, onerror=lambda error: problems.append(_unreadable(error))):
        folder = Path(parent)
        inner = _RUN_FOLDERS if _is_run(folder) else frozenset[str]()
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in inner)
        yield folder
