"""How each number of a page is made again, and from which file it was read."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.cli import COMMANDS
from common.reporting.page import Block, Code, Facts, Folded, Heading, Section, Text
from common.reporting.recipe_sections import described, environment_facts
from common.reporting.runs import Run
from eval.report.find import IMAGES, Evaluation, Material

# task of a run's results -> its command
_TRAIN = {"vit_classify": "vit train", "llava": "llava train", "dreambooth": "dreambooth train"}
assert set(_TRAIN.values()) <= set(COMMANDS), "a command was renamed"

_FILES = {
    "results, costs": "RUN/results.json",
    "curves": "RUN/metrics.jsonl",
    "router load": "RUN/router_load.jsonl (training), RUN/router_load.json (test set)",
    "spectra, mixers": "pictures in RUN/plots; their numbers: RUN/diagnostics.json",
    "confusions": "pictures in RUN/plots; their numbers: RUN/predictions.csv",
    "samples": "RUN/samples/samples.json",
    "recipes, environment": "RUN/config.yaml, RUN/environment.json",
    "evaluations": "the results.json or eval_images.json that is named with each below",
    "published numbers": "common/reporting/published of the suite, with source and what was checked",
}


def reproduce_section(material: Material, plots: Path) -> Section:
    """The command of every run and evaluation, with commit and versions, and where the page's numbers stand."""
    blocks: list[Block] = [
        Text("Where each number of this page was read from; nothing was typed in by hand:"),
        Facts(_FILES),
        Text(
            "The same seed on the same versions and the same number of processes trains the same run again; another "
            "machine or version can change the last digits, and now and then an answer. Commit and versions are under "
            "Environment and below."
        ),
    ]
    if material.groups:
        runs = [run for group in material.groups for run in group.runs]
        blocks += [Heading("Runs"), Code("\n".join(line for run in runs for line in _of_run(run)))]
    if material.evaluations:
        blocks += [
            Heading("Evaluations"),
            Code("\n".join(line for each in material.evaluations for line in told(each))),
        ]
        blocks += _environments(material)
    return Section("How to reproduce", blocks, folded=True)


def _of_run(run: Run) -> list[str]:
    commit = environment_facts(run).get("commit", "an unknown commit")
    task = str(run.results.get("task"))
    name = f"# {run.path}, {commit}"
    if task not in _TRAIN:
        return [name, f"# this version has no command that makes a run of {task}"]
    recipe = shlex.quote(str(run.path / "config.yaml"))
    return [name, f"mosgoat {_TRAIN[task]} --config {recipe} --output NEW"]


def told(each: Evaluation) -> list[str]:
    """Where an evaluation stands and what made it; for one that did not note it, what it notes of its making."""
    lines = [f"# {each.file}, {_commit(each.content)}"]
    run = each.content.get("run")
    if isinstance(run, str) and not os.path.isdir(run):
        lines.append(f"# its run {run} is not there any more")
    if each.command:
        return [*lines, each.command]
    if each.kind == IMAGES:
        content = each.content
        words = ["mosgoat", "eval", "images", "--run", str(run), "--split", str(content["split"])]
        words += ["--data.name", str(content["dataset"])]
        words += ["--data.source", str(content["source"])] if content.get("source") else []
        return [*lines, shlex.join([*words, "--output", "NEW"])]
    asked = {
        key: each.content[key] for key in ("run", "model", "benchmark", "answer", "generated") if key in each.content
    }
    options = ", ".join(f"{key}={value}" for key, value in asked.items() if value is not None)
    return [
        *lines,
        f"# made by mosgoat {each.title}, which did not note its words then{': ' if options else ''}{options}",
    ]


def _commit(content: Mapping[str, Any]) -> str:
    return _facts(content).get("commit", "an unknown commit")


def _facts(content: Mapping[str, Any]) -> dict[str, str]:
    environment = content.get("environment")
    return described(environment) if isinstance(environment, dict) else {}


def _environments(material: Material) -> list[Block]:
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for each in material.evaluations:
        facts = _facts(each.content)
        facts.pop("started", None)
        if facts:
            found.setdefault(tuple(facts.items()), []).append(str(each.file))
    return [
        Folded(f"Environment of {len(files)} of these evaluations", [Text(", ".join(files)), Facts(dict(facts))])
        for facts, files in found.items()
    ]
