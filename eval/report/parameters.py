"""Trained parameters of LLaMA-3-8B adapters beside the parameter column of [M] Table 4.

The column of [G] Table 1 stands in its own table, see `eval.report.classification`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from common.reporting.compare import MeasuredRow, beside_published
from common.reporting.groups import RunGroup
from common.reporting.page import Section, Text
from common.reporting.published import load_published
from common.reporting.tables import Row, Table
from eval.report.find import Material
from llava.config import TARGET_MODULES

_PAPER = "q_proj, k_proj, v_proj, up_proj, down_proj"


def parameters_section(material: Material, plots: Path) -> Section | None:
    """The paper's column with ours; nothing without a run on the paper's base."""
    groups = [group for group in material.groups if group.task == "llava" and is_llama(group)]
    if not groups:
        return None
    return Section(
        "Trained parameters beside [M] Table 4", [parameters_table(groups), Text("\n\n".join(differences(groups)))]
    )


def is_llama(group: RunGroup) -> bool:
    """Whether the language model is LLaMA-3-8B, as far as its name says."""
    name = str(group.first.section("model").get("language_model") or "")
    return "llama38b" in re.sub(r"[^a-z0-9]", "", name.lower().replace("meta", ""))


def parameters_table(groups: Sequence[RunGroup]) -> Table:
    """Millions; no number is better than another."""
    rows = []
    for group in groups:
        counted = group.metric("trainable_parameters")
        values = {"millions": {0: counted.mean / 1e6}} if counted else {}
        rows.append(MeasuredRow(group.label, values))
    table = beside_published(load_published("moslora_table4"), rows, heading="trained here")
    kept = [index for index, column in enumerate(table.columns) if column.name in ("method", "trained, M")]
    columns = [table.columns[index] for index in kept]
    return Table(
        columns,
        [Row(tuple(row.values[index] for index in kept), row.group, ranked=False) for row in table.rows],
        table.caption,
    )


def differences(groups: Sequence[RunGroup]) -> list[str]:
    """In plain words why the counts differ; a sentence each."""
    found = [f"[M] counts adapters of rank 16 on {_PAPER} of the language model alone (text, no pictures)."]
    for group in groups:
        run = group.first
        adapter = run.section("adapter")
        layers = ", ".join(adapter.get("target_modules") or TARGET_MODULES)
        told = [f"rank {adapter.get('r')} on {layers}"]
        told += ["adapters on the vision tower too"] if run.section("tower").get("adapt", True) else []
        told += ["the projector trained too"] if run.section("model").get("train_projector", True) else []
        found.append(f"{group.label}: {'; '.join(told)}.")
    return found
