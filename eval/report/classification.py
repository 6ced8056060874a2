"""Runs of `vit_classify` beside [G] Table 1, what differs in their setting, and what `mosgoat eval images` measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from common.config import Method
from common.reporting.compare import MeasuredRow, beside_published
from common.reporting.groups import RunGroup, by_setting, flatten
from common.reporting.labels import method_label
from common.reporting.page import Block, Figure, Figures, Folded, Heading, Section, Text
from common.reporting.published import load_published
from common.reporting.runs import seed_of
from common.reporting.sections import SETTINGS, shown, titled
from common.reporting.tables import Column, Row, Table, Value
from common.words import counted, listed
from eval.images import PREFIX
from eval.report.find import IMAGES, Evaluation, Material
from vit_classify.data.registry import SETS
from vit_classify.sweep_table import PUBLISHED, params_percent

TASK = "vit_classify"
_RECIPES = Path(__file__).resolve().parents[2] / "vit_classify" / "recipes"  # the paper's settings
_SETTING = ("model.name", "adapter.r", "adapter.dropout", "train.")  # beginnings of the keys that are compared
_BUILTIN = "builtin:"  # what ships with the suite: drawn


def classification_section(material: Material, plots: Path) -> Section | None:
    """The paper's table with our rows, and our measurements on other pictures."""
    groups = [group for group in material.groups if group.task == TASK and group.metric("accuracy") is not None]
    papers = [group for group in groups if is_of_paper(group)]
    blocks: list[Block] = []
    if papers:
        table = beside_published(load_published(PUBLISHED), measured_rows(papers), heading="measured here")
        blocks += [table, Heading("What differs from the paper's setting"), Text("\n\n".join(differences(papers)))]
    others = [str(group.first.results.get("dataset", "?")) for group in groups if group not in papers]
    if papers and others:
        blocks.append(
            Text(
                f"Not here, as [G] does not have them: {listed(dict.fromkeys(others))}. Their figures are under Result."
            )
        )
    if evaluations := material.of(IMAGES):
        blocks += [*titled("Measured again: mosgoat eval images", bool(papers)), evaluations_table(evaluations)]
        blocks += _confusions(evaluations)
    title = "Image classification beside [G] Table 1" if papers else "Image classification, measured again"
    return Section(title, blocks) if blocks else None


def is_of_paper(group: RunGroup) -> bool:
    """Whether a group measured one of the paper's sets with a model of photographs; drawn ones are another matter."""
    model = str(group.first.section("model").get("name", ""))
    source = str(group.first.section("data").get("source") or "")
    return group.first.results.get("dataset") in SETS and not model.startswith(_BUILTIN) and _BUILTIN not in source


def measured_rows(groups: Sequence[RunGroup]) -> list[MeasuredRow]:
    """One row per setting in percent, after a row for the model before training where that was measured."""
    rows = []
    before = {
        str(group.first.results["dataset"]): {0: 100 * spread.mean}
        for group in groups
        if (spread := group.metric("zero_shot_accuracy")) is not None
    }
    if before:
        rows.append(MeasuredRow("before training", before, 0.0, ranked=False))
    for name, members in by_setting(groups).items():
        values = {
            str(group.first.results["dataset"]): {
                seed_of(run): 100 * float(run.results["metrics"]["accuracy"]) for run in group.runs
            }
            for group in members
        }
        runs = [run for group in members for run in group.runs]
        counts = [run.results["metrics"].get("trainable_parameters") for run in runs]
        model = str(runs[0].section("model").get("name"))
        known = all(isinstance(count, int) for count in counts)
        rows.append(MeasuredRow(name, values, params_percent(model, counts) if known else None))
    return rows


def differences(groups: Sequence[RunGroup]) -> list[str]:
    """In plain words what keeps our rows from being the paper's experiment; a sentence each."""
    found = ["[G] trained CLIP ViT-B/32 on the whole training splits with the settings of its Table 10."]
    for text, labels in _by_text(groups, _setting).items():
        found.append(f"{listed(labels, 4)}: {text}.")
    for text, labels in _by_text(groups, _data).items():
        found.append(f"{listed(labels, 4)}: {text}.")
    heads = sorted({str(group.first.results.get("head", "zero_shot")) for group in groups})
    found.append(
        f"Head here: {' and '.join(heads)}. The paper does not name its head; its released code trains a linear one, "
        "and task arithmetic, whose splits it takes, keeps a zero-shot one."
    )
    seeds = sorted({len(group.runs) for group in groups})
    several = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else counted(seeds[0], "seed")
    found.append(f"Rows here are of {several} a set; the paper's spread over seeds is not known.")
    return found


def _by_text(groups: Sequence[RunGroup], tell: Any) -> dict[str, list[str]]:
    """What is told of groups -> their labels; those of which nothing is told left out."""
    found: dict[str, list[str]] = {}
    for group in groups:
        if text := tell(group):
            found.setdefault(text, []).append(group.label)
    return found


def _setting(group: RunGroup) -> str:
    """The keys in which a recipe leaves the one that has the paper's settings."""
    own = _RECIPES / f"{group.first.results.get('method')}.yaml"
    paper = flatten(yaml.safe_load((own if own.is_file() else _RECIPES / "goat.yaml").read_text(encoding="utf-8")))
    ours = flatten(group.first.config)
    other = []
    for key, value in paper.items():
        if key.startswith(_SETTING) and key in ours and ours[key] != value:
            other.append(f"{key}={ours[key]} (paper: {'the set’s own' if value is None else value})")
    weights = ours.get("model.weights")
    other += [f"model.weights={weights} (paper: openai)"] if weights not in (None, "openai") else []
    other += ["train.max_steps ends it earlier or later"] if ours.get("train.max_steps") is not None else []
    return ", ".join(other)


def _data(group: RunGroup) -> str:
    results, spec = group.first.results, SETS[str(group.first.results["dataset"])]
    told = []
    source = group.first.section("data").get("source")
    if source is not None:
        told.append(f"pictures from {source}, not from the Hub's copy of the set")
    if results.get("n") != spec.test_size:
        told.append(f"measured on {results.get('n')} pictures, where the paper's test split has {spec.test_size:,}")
    if results.get("skipped"):
        told.append(f"{results['skipped']} unreadable pictures were left out")
    return ", ".join(told)


def evaluations_table(evaluations: Sequence[Evaluation]) -> Table:
    """A row for each measurement."""
    columns = [Column(name, better=None) for name in ("run", "data", "split")]
    columns += [Column("accuracy, %", 2, None), Column("n", better=None), Column("left out", better=None)]
    rows = []
    for each, name in zip(evaluations, names_of(evaluations), strict=True):
        content = each.content
        accuracy = 100 * float(content["metrics"]["accuracy"])
        source = content.get("source")
        data = str(content["dataset"]) + (f" ({source})" if source else "")
        values: tuple[Value, ...] = (name, data, str(content["split"]), accuracy, int(content["n"]))
        rows.append(Row((*values, int(content.get("skipped", 0)))))
    return Table(columns, rows, "Each from its eval_images.json.")


def names_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """Method and seed of each run that was measured; its folder too where that is not enough, or alone."""
    names = [_name_of(each) for each in evaluations]
    folders = [str(each.content["run"]) for each in evaluations]
    runs: dict[str, set[str]] = {}
    for name, folder in zip(names, folders, strict=True):
        runs.setdefault(name, set()).add(folder)
    return [f"{name}, {folder}" if len(runs[name]) > 1 else name for name, folder in zip(names, folders, strict=True)]


def _name_of(each: Evaluation) -> str:
    method: Any = each.content.get("method")
    seed = each.content.get("seed")
    if method not in get_args(Method) or seed is None:
        return str(each.content["run"])
    return f"{method_label(method)}, seed {seed}"


def _confusions(evaluations: Sequence[Evaluation]) -> list[Block]:
    names = names_of(evaluations)
    having = [(each, name) for each, name in zip(evaluations, names, strict=True) if _confusion(each).is_file()]
    if not having:
        return []
    some, note = shown(having, SETTINGS, "confusion matrices")
    figures = [
        Figure(
            _confusion(each),
            f"Confusion matrix of {name} on {each.content['dataset']}.",
            f"{name}, on {each.content['dataset']}, {each.content['split']}.",
        )
        for each, name in some
    ]
    return [Folded("Confusion matrices of these measurements", [*note, Figures(figures, width=480)])]


def _confusion(each: Evaluation) -> Path:
    return each.file.parent / "plots" / f"{PREFIX}_confusion.png"
