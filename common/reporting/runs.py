"""Reading finished run directories: what a table, a picture or a page is made of."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import yaml

from common.errors import UserError
from common.files import read_json_lines

# Pictures that `write_diagnostics` puts into the `plots` of a run.
SPECTRA_PLOT, MIXERS_PLOT, LOAD_PLOT = "singular_values.png", "mixers.png", "router_load_training.png"
METRICS, ROUTER_LOAD, EVALUATED_LOAD = "metrics.jsonl", "router_load.jsonl", "router_load.json"
_MOST = 1e18  # nothing that is counted or measured comes near; nor is it infinite or no number


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        path: its directory.
        config: the resolved recipe, from `config.yaml`.
        results: the content of `results.json`.
        metrics: the lines of `metrics.jsonl`, in order; empty where the run wrote none.
        damaged: names of other files of the run that cannot be read, and are passed over.
    """

    path: Path
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    damaged: frozenset[str] = frozenset()

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of the recipe; empty where it has none of that name."""
        found = self.config.get(name)
        return found if isinstance(found, Mapping) else {}

    def has(self, name: str) -> bool:
        """Whether a file of the run is there and can be read."""
        return name not in self.damaged and os.path.isfile(self.path / name)


def read_run(path: Path) -> Run:
    """Read the directory of a finished run.

    Raises:
        UserError: the directory is missing, is no run, has not finished, or holds a broken file; the message
            names the file and what to do.
    """
    return replace(read_results(path), metrics=read_metrics(path / METRICS))


def read_results(path: Path) -> Run:
    """`read_run` without the course of its metrics."""
    if not path.is_dir():
        raise UserError(f"there is no run at {path}; give the folder that --output named")
    config = read_config(path)
    results = path / "results.json"
    if not results.is_file():
        raise UserError(
            f"the run {path} has not finished: it has no results.json. Go on with the command that "
            "started it; it resumes from the newest checkpoint"
        )
    content = read_json(results)
    if not isinstance(content, dict) or not isinstance(content.get("metrics"), dict):
        raise UserError(f"{results} is no result of a run: it has no section `metrics`")
    for key in ("task", "method", "dataset"):
        if not isinstance(content.get(key), str | None):
            raise UserError(f"{results}: {key}={content[key]!r} must be a text; was the file changed?")
    for key, value in content["metrics"].items():
        if isinstance(value, int | float) and not abs(value) <= _MOST:
            raise UserError(f"{results}: {key} is no number that a run measures; was the file changed?")
    return Run(path, config, content, ())


def read_config(path: Path) -> dict[str, Any]:
    """The recipe of a run, `config.yaml` in the directory `path`.

    Raises:
        UserError: the file is missing or is no YAML mapping.
    """
    file = path / "config.yaml"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not the directory of a run: it has no config.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is no recipe: it holds a {type(content).__name__}, not `key: value` lines")
    return content


def require_run_of(path: Path, task: str, mark: str) -> None:
    """Refuse a folder that holds no model which the pipeline `task` has trained; cheap, before anything is loaded.

    Args:
        path: the run directory.
        task: of the results.
        mark: name of the file that the pipeline writes when a run is saved.

    Raises:
        UserError: it is no run, one of another pipeline, or one that did not finish.
    """
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} is not the directory of a run: config.yaml is missing")
    if (path / "results.json").is_file():
        results = read_json(path / "results.json")
        found = results.get("task") if isinstance(results, dict) else None
        if found != task:
            raise UserError(f"{path} is a run of {found}, not of {task}; `mosgoat --help` lists what opens it")
    if not (path / mark).is_file():
        raise UserError(
            f"{path} holds no trained model of {task}: {mark} is missing; either the run did not finish (the command "
            "that began it goes on with it), or it is one of another pipeline"
        )


def refuse_other_results(folder: Path, task: str) -> None:
    """Refuse an output folder that cannot be one, or whose `results.json` another command has written.

    Args:
        folder: need not exist.
        task: of the results that are to be written.

    Raises:
        UserError: the results are those of something else, such as a training run, and would be lost; or there is a
            file in the place of the folder or of one above it.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(f"--output={folder}: {there} is a file; give the path of a folder")
    file = folder / "results.json"
    if file.is_file():
        content = read_json(file)
        found = content.get("task") if isinstance(content, dict) else None
        if found != task:
            raise UserError(f"--output={folder} has a results.json of {found or 'something else'}; give another folder")


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: the file is missing, or broken at a position that the message names.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: byte {error.start}; was it copied whole?") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file} is broken at line {error.lineno}, column {error.colno}: {error.msg}; was it copied whole?"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise UserError(f"{file} cannot be read as JSON: {error}") from None


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; none if the file is absent.

    Raises:
        UserError: a line is no JSON object; the message names file, line and column.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: byte {error.start}; was it copied whole?") from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file} is broken at line {number}, column {error.colno}: {error.msg}") from None
        if not isinstance(record, dict):
            raise UserError(f"{file} is broken at line {number}: a {type(record).__name__}, not an object")
        records.append(record)
    return records


def series(metrics: Iterable[Mapping[str, Any]], key: str, x: str = "step") -> tuple[list[float], list[float]]:
    """The course of one metric: x values and values of the lines that have both (null or a text is not a value)."""
    pairs = [(line.get(x), line.get(key)) for line in metrics]
    numbers = [(step, value) for step, value in pairs if _is_number(step) and _is_number(value)]
    return [float(step) for step, _ in numbers], [float(value) for _, value in numbers]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def training_load(file: Path) -> dict[str, list[float]]:
    """Each expert's share of the tokens in the last quarter of a training, the part in which it has settled.

    Args:
        file: `router_load.jsonl` of a run.

    Returns:
        Layer name -> shares that add up to 1; empty without the file or where nothing was routed.
    """
    lines = read_json_lines(file)
    lines = [line for line in lines if _is_number(line.get("step"))]
    last = max((line["step"] for line in lines), default=0)
    total: dict[str, np.ndarray] = {}
    for line in lines:
        if line["step"] > 0.75 * last:
            for name, tokens in _rows(file, line.get("tokens")).items():
                total[name] = total.get(name, 0.0) + np.asarray(tokens, float)
    return {name: (tokens / tokens.sum()).tolist() for name, tokens in total.items() if tokens.sum() > 0}


def evaluated_load(file: Path) -> dict[str, list[float]]:
    """Each expert's share of the tokens of the test set.

    Args:
        file: `router_load.json` of a run.

    Returns:
        Layer name -> shares; empty without the file.

    Raises:
        UserError: the file is broken, or holds something else.
    """
    if not file.is_file():
        return {}
    try:
        content = read_json(file)
    except UserError as error:
        raise UserError(f"{error}; delete the file, or leave its run out") from None
    return _rows(file, content)


def _rows(file: Path, content: Any) -> dict[str, list[float]]:
    """`content` if it is what a router load is: layers with as many numbers each."""
    rows = list(content.values()) if isinstance(content, dict) else None
    whole = rows is not None and all(isinstance(row, list) and all(map(_is_number, row)) for row in rows)
    if rows is None or not whole or len({len(row) for row in rows}) > 1:
        raise UserError(
            f"{file} holds no router load (name of a layer -> one number for each expert); delete the file, or leave "
            "its run out"
        )
    return dict(content)


def seed_of(run: Run) -> int:
    """The seed of a run; raises `UserError` where its results hold another thing."""
    seed = run.results.get("seed", 0)
    if not isinstance(seed, int):
        raise UserError(f"{run.path / 'results.json'}: seed={seed!r} must be a whole number; was the file changed?")
    return seed
