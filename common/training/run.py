"""The run directory: everything about a run, and all that evaluation needs."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from common.config import Resume
from common.errors import UserError
from common.files import TEMPORARY, atomic_write, cut_json_lines, write_json
from common.recipe_keys import changed_keys, config_hash, plain
from common.training import processes
from common.training.checkpoint import newest_checkpoint, newest_sound_checkpoint, step_of
from common.training.environment import describe_environment
from common.training.lock import lock, unlock

RunState = Literal["new", "resumed", "finished"]

_TO_FINISH_ANEW = "remove it, and the command that made the run writes it anew from the last checkpoint"
_NO_RECIPE = (
    "what was trained here cannot be told. Put the file back (`--print_config` with the options of the run prints it), "
    "give another output, or overwrite=true to delete the run"
)


@dataclass(frozen=True)
class RunDirectory:
    """Places in a run directory and what is to be done with it.

    Args:
        path: the directory.
        config_hash: `config_hash` of the recipe.
        state: `new`: nothing trained yet; `resumed`: goes on from `checkpoint`; `finished`: has its results.
        checkpoint: the newest whole checkpoint when the run was opened.
    """

    path: Path
    config_hash: str
    state: RunState
    checkpoint: Path | None = None

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, commit and devices; one entry more for each time the run was resumed."""
        return self.path / "environment.json"

    @property
    def adapter(self) -> Path:
        """Folder of the adapter in PEFT's format."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, in the order in which they were measured."""
        return self.path / "metrics.jsonl"

    @property
    def router_load(self) -> Path:
        """How many tokens each expert of each layer got in training, one JSON object for each line of `metrics`."""
        return self.path / "router_load.jsonl"

    @property
    def results(self) -> Path:
        """The measured result; its presence means that the run is finished."""
        return self.path / "results.json"

    @property
    def plots(self) -> Path:
        """Folder of pictures."""
        return self.path / "plots"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @classmethod
    def create(cls, path: str | Path, recipe: Any, *, resume: Resume, overwrite: bool = False) -> RunDirectory:
        """Make a run directory, or open the one that is there; a collective call.

        Args:
            path: the directory.
            recipe: the resolved recipe, a dataclass or a mapping of plain values.
            resume: `auto`: go on from the newest whole checkpoint, or begin if there is none; `never`: refuse
                a directory that holds a run; `must`: refuse one without a checkpoint.
            overwrite: delete a run that is there first.

        Raises:
            UserError: the directory holds a run of another recipe (the keys are named), something that is no
                run, or not what `resume` asks for.
        """
        processes.start()
        values = plain(recipe)

        def opened() -> RunDirectory:
            try:
                return _open(cls, Path(path), values, resume, overwrite)
            except OSError as error:
                raise UserError(f"output={path} cannot be written: {error}") from error

        return processes.on_main(opened)

    def write_results(self, *, task: str, metrics: Mapping[str, Any], n: int, seed: int, **more: Any) -> dict[str, Any]:
        """Write `results.json`, which marks the run as finished; the main process writes.

        Args:
            task: the pipeline, such as `vit_classify`.
            metrics: the measured values, plain numbers or mappings of them.
            n: number of items that the metrics were measured on.
            seed: the run's seed.
            more: further entries, such as `dataset` and `method`.

        Returns:
            What was written.
        """
        results = {
            "task": task,
            **more,
            "metrics": dict(metrics),
            "n": n,
            "seed": seed,
            "config_hash": self.config_hash,
        }
        if processes.is_main():
            write_json(self.results, results)
            unlock(self.path)
        return results

    def read_results(self) -> dict[str, Any]:
        """The results of a finished run.

        Raises:
            UserError: the file is damaged.
        """
        found = _read_json(self.results)
        if not isinstance(found.get("metrics"), dict):
            raise UserError(f"{self.results} is no result of a run: it has no section `metrics`; {_TO_FINISH_ANEW}")
        return found


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); {_TO_FINISH_ANEW}") from error
    return found if isinstance(found, dict) else {}


def _open(cls: type[RunDirectory], path: Path, recipe: dict[str, Any], resume: Resume, overwrite: bool) -> RunDirectory:
    if _holds_run(path) and (overwrite or not (path / "results.json").is_file()):
        lock(path)
    if overwrite:
        _delete_run(path)
    held = _holds_run(path) and has_work(path)
    if held:
        _require_resumable(path, recipe, resume)
    finished = held and (path / "results.json").is_file()
    checkpoint = _checkpoint_to_go_on_from(path) if held and not finished else None
    if resume == "must" and checkpoint is None and not finished:
        raise UserError(
            f"resume=must, but output={path} holds no whole checkpoint; check the path, or use resume=auto to begin"
        )
    state: RunState = "finished" if finished else "resumed" if checkpoint else "new"
    run = cls(path, config_hash(recipe), state, checkpoint)
    if not finished:
        _prepare(run, recipe)
    return run


def _prepare(run: RunDirectory, recipe: dict[str, Any]) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    lock(run.path)
    # As `--config RUN/config.yaml` it is to go on with this run from any folder, and never to delete it.
    kept = {**recipe, "output": str(run.path.resolve()), "resume": "auto", "overwrite": False}
    kept = {key: value for key, value in kept.items() if key in recipe}
    atomic_write(run.config, yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
    now: dict[str, Any] = describe_environment()
    if run.checkpoint is not None:
        first: dict[str, Any] = {}
        with contextlib.suppress(UserError):  # it only describes; damage to it must not bar the run
            first = _read_json(run.environment)
        now = {**first, "resumed": [*first.get("resumed", []), {"step": step_of(run.checkpoint), **now}]}
    write_json(run.environment, now)
    for file in (run.metrics, run.router_load):
        cut_json_lines(file, -1 if run.checkpoint is None else step_of(run.checkpoint))


def _checkpoint_to_go_on_from(path: Path) -> Path | None:
    checkpoint, damaged = newest_sound_checkpoint(path / "checkpoints")
    if damaged:
        go_on = f"goes on from {checkpoint.name}" if checkpoint else "begins again at step 0"
        print(
            f"warning: damaged or incomplete, and passed over: {', '.join(map(str, damaged))}; the run {go_on}",
            file=sys.stderr,
            flush=True,
        )
    return checkpoint


def _holds_run(path: Path) -> bool:
    if (path / "config.yaml").is_file():
        return True
    if path.exists() and not path.is_dir():
        raise UserError(f"output={path} is a file; give the path of a folder")
    # A start that was killed at once leaves a temporary file.
    if path.is_dir() and any(not child.name.endswith(TEMPORARY) for child in path.iterdir()):
        raise UserError(f"output={path} is not empty and is no run; give another folder")
    return False


def has_work(path: Path) -> bool:
    """Whether anything was trained: a start that failed on a wrong path must not bar the corrected one."""
    metrics = path / "metrics.jsonl"
    return (
        (path / "results.json").is_file()
        or newest_checkpoint(path / "checkpoints") is not None
        or (metrics.is_file() and metrics.stat().st_size > 0)
    )


def _delete_run(path: Path) -> None:
    if _holds_run(path):
        path = path.resolve()
        # Renamed first, so that a deletion that is interrupted leaves nothing that looks like a run.
        doomed = path.with_name(f".{path.name}.deleted{TEMPORARY}")
        if doomed.exists():
            shutil.rmtree(doomed)
        path.rename(doomed)
        unlock(path)
        shutil.rmtree(doomed)


def _read_config(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} is damaged: {' '.join(str(error).split())}; {_NO_RECIPE}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is damaged: it holds no recipe; {_NO_RECIPE}")
    return found


def _require_resumable(path: Path, recipe: dict[str, Any], resume: Resume) -> None:
    if resume == "never":
        raise UserError(
            f"output={path} holds a run already and resume=never; give another output, overwrite=true to delete "
            "the old run, or resume=auto to go on with it"
        )
    changed = changed_keys(_read_config(path / "config.yaml"), recipe)
    if changed:
        lines = [f"{key}: {old} in the run, {new} now" for key, (old, new) in changed.items()]
        raise UserError(
            f"output={path} holds a run of another recipe; these keys differ:\n  - "
            + "\n  - ".join(lines)
            + "\nA run goes on only with the recipe it began with (a longer run has another learning rate "
            "schedule from its first step). Put the keys back, give another output, or overwrite=true."
        )
