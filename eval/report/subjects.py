"""Measures of generated pictures beside DreamBooth's Table 1, and what people said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.reporting.page import Block, Figure, Figures, Folded, Heading, Section, Text
from common.reporting.published import load_published
from common.reporting.tables import Table
from common.words import counted, listed
from eval.report.find import Evaluation, Material
from eval.study.export import TASK as STUDY
from eval.study.export import results_table
from eval.study.questions import QUESTIONS
from eval.study.results import Comparison, RaterProgress, Share, StudyResults
from eval.subjects.extractors import CLIP, DINO
from eval.subjects.results import TASK, table_of


def subjects_section(material: Material, plots: Path) -> Section | None:
    """A table for each measurement."""
    evaluations = material.of(TASK)
    blocks: list[Block] = []
    beside = False
    for each in evaluations:
        if len(evaluations) > 1:
            blocks.append(Heading(str(each.file.parent)))
        beside |= is_protocol(each.content)
        blocks += [table(each), Text("\n\n".join(differences(each.content)))]
        picture = each.file.parent / "plots" / "subjects.png"
        if picture.is_file():
            figure = Figure(picture, "The measures of every adapter, by subject.", f"From {each.file.parent}.")
            blocks.append(Folded("As a picture", [Figures([figure], 640)]))
    title = "Pictures of subjects beside DreamBooth Table 1" if beside else "Pictures of subjects"
    return Section(title, blocks) if blocks else None


def is_protocol(content: Mapping[str, Any]) -> bool:
    """Whether the features are those of the protocol: cosines in other features compare with nothing published."""
    return not content.get("about") and set(content["models"].items()) <= {("dino", DINO), ("clip", CLIP)}


def table(each: Evaluation) -> Table:
    """The adapters, beside the published rows where the features are theirs."""
    content = each.content
    if is_protocol(content):
        return table_of(content, load_published("dreambooth_table1"), "measured here")
    models = ", ".join(f"{name.upper()}: {given}" for name, given in content["models"].items())
    return table_of(content, heading=f"measured with {models}")


def check(each: Evaluation) -> list[Table]:
    """Use a measurement as the page does; raises where it is not what it says."""
    differences(each.content)
    return [table(each)]


def differences(content: Mapping[str, Any]) -> list[str]:
    """In plain words what keeps a measurement from being the paper's; a sentence each."""
    found = []
    if not is_protocol(content):
        found.append(
            "The published rows are left out: cosines between the features of other networks than DINO ViT-S/16 and "
            "CLIP ViT-B/32 are another quantity."
        )
    subjects = {name for adapter in content["adapters"].values() for name in adapter["subjects"]}
    most = max((adapter["n"] for adapter in content["adapters"].values()), default=0)
    if is_protocol(content):
        found.append(
            "The paper measured 30 subjects with 25 prompts and 4 pictures each, of Imagen and Stable Diffusion. Here: "
            f"{counted(len(subjects), 'subject')} ({listed(sorted(subjects), 6)}), at most {counted(most, 'picture')} "
            "of an adapter, of the base that it was trained on."
        )
    if content.get("missing"):
        found.append(f"{len(content['missing'])} pictures or sets are missing; results.json names them.")
    if content.get("unreadable"):
        found.append(f"{len(content['unreadable'])} pictures could not be read and were left out.")
    return found


def study_section(material: Material, plots: Path) -> Section | None:
    """The votes of blind studies."""
    blocks: list[Block] = []
    for each in material.of(STUDY):
        blocks.append(study_table(each))
        picture = each.file.parent / "results.png"
        if picture.is_file():
            title = each.content["title"]
            figure = Figure(picture, f"Votes of {title}.", f"{title}: share of the votes.")
            blocks.append(Figures([figure], 640))
    return Section("Human study", blocks) if blocks else None


def study_table(each: Evaluation) -> Table:
    """Wins, ties and losses in the form of [M] Table 6, from a study's `results.json`."""
    content = each.content
    questions = {question.key: question for question in QUESTIONS}
    comparisons = [_comparison(entry, questions) for entry in content["comparisons"]]
    raters = [RaterProgress(r["name"], r["answered"], r["total"], False, "") for r in content["raters"]]
    methods: Sequence[str] = content["methods"]
    return results_table(
        StudyResults(content["title"], content["created_at"], methods, content["pairs"], raters, comparisons)
    )


def _comparison(entry: Mapping[str, Any], questions: Mapping[str, Any]) -> Comparison:
    win, tie, loss = (
        Share(entry[f"{name}_count"], entry[name], *entry[f"{name}_interval"]) for name in ("win", "tie", "loss")
    )
    low, high = entry["delta_interval"] or (None, None)
    plain = {key: entry[key] for key in ("first", "second", "votes", "kappa", "raters", "pairs", "shared_pairs")}
    return Comparison(
        **plain,
        win=win,
        tie=tie,
        loss=loss,
        question=questions[entry["question"]],
        delta_low=low,
        delta_high=high,
        left=entry["left_share"],
    )
