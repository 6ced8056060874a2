"""The parts of a report that say how its runs were made: recipes, environments, commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.reporting.groups import RunGroup, differing_keys, flatten
from common.reporting.page import Block, Code, Facts, Folded, Section, Text
from common.reporting.runs import Run, read_json
from common.reporting.sections import by_task, texts, titled
from common.reporting.tables import Column, Row, Table
from common.words import listed

ENVIRONMENT = "environment.json"


def recipe_section(groups: Sequence[RunGroup], plots: Path) -> Section | None:
    """Where the recipes of a pipeline differ, and each of them whole."""
    blocks: list[Block] = []
    tasks = by_task(groups)
    for task, members in tasks.items():
        keys = differing_keys([group.first.config for group in members])
        if keys:
            blocks += [*titled(task, len(tasks) > 1), _difference(members, keys)]
    blocks += [Folded(f"{group.task}: {group.name}", recipe_blocks(group)) for group in groups]
    return Section("Recipes", blocks, folded=True) if blocks else None


def _difference(groups: Sequence[RunGroup], keys: Sequence[str]) -> Table:
    """Keys by recipes, the more numerous of them downwards."""
    flat = [flatten(group.first.config) for group in groups]
    caption = "The keys in which the recipes differ."
    if len(keys) >= len(groups):
        columns = [Column("key", better=None), *(Column(group.name, better=None) for group in groups)]
        return Table(columns, [Row((key, *(_text(config.get(key)) for config in flat))) for key in keys], caption)
    columns = [Column("run", better=None), *(Column(key, better=None) for key in keys)]
    rows = [
        Row((group.name, *(_text(config.get(key)) for key in keys))) for group, config in zip(groups, flat, strict=True)
    ]
    return Table(columns, rows, caption)


def recipe_blocks(group: RunGroup) -> list[Block]:
    """The resolved recipe of the group's first run."""
    text = yaml.safe_dump(dict(group.first.config), sort_keys=False, allow_unicode=True)
    return [Text(f"As resolved for {group.name}, seed {group.seeds[0]}:"), Code(text)]


def environment_section(groups: Sequence[RunGroup], plots: Path) -> Section | None:
    """Where and with what the runs were made; runs of the same environment together."""
    found: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    started: dict[int, str] = {}
    for run in (run for group in groups for run in group.runs):
        facts = environment_facts(run)
        started[id(run)] = facts.pop("started", "at an unknown time")
        if facts:
            found.setdefault(tuple(facts.items()), []).append(run)
    blocks: list[Block] = []
    for environment, runs in found.items():
        named = [f"{run.path} ({started[id(run)]})" for run in runs]
        blocks += [Text(f"{listed(named, 6)}:"), Facts(dict(environment))]
    return Section("Environment", blocks, folded=True) if blocks else None


def environment_facts(run: Run) -> dict[str, str]:
    """Start, machine, commit and versions of a run; empty where it did not write them."""
    file = run.path / ENVIRONMENT
    if not run.has(ENVIRONMENT):
        return {}
    try:
        found = read_json(file)
        return described(found if isinstance(found, dict) else {})
    except UserError as error:
        raise UserError(f"{error}; delete the file, or leave its run out") from None
    except (TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{file} holds no environment of a run ({error}); delete it, or leave its run out") from None


def described(found: Mapping[str, Any]) -> dict[str, str]:
    """What `describe_environment` wrote, as facts for a reader; what is unknown is left out."""
    devices = ", ".join(dict.fromkeys(str(device.get("name")) for device in found.get("devices", [])))
    git = found.get("git") or {}
    changed = f" with {git['changed_files']} changed files" if git.get("changed_files") else ""
    facts = {
        "started": found.get("started"),
        "machine": devices and f"{found.get('cpu_count', '?')} cores, {devices}",
        "processes": found.get("world_size"),
        "commit": git.get("commit") and f"{git['commit'][:12]}{changed}",
        "python": found.get("python"),
        "packages": ", ".join(f"{name} {version}" for name, version in found.get("packages", {}).items()),
    }
    return texts(facts)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
