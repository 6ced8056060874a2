"""Evaluations of LLaVA models beside [M] Table 5, and their abilities as [M] Figure 5 shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.reporting.page import Block, Figure, Figures, Folded, Heading, Section, Text
from common.reporting.runs import read_config
from common.reporting.sections import LINES
from common.reporting.tables import Table
from common.words import listed
from eval.report.find import Evaluation, Material
from eval.vlm.benchmarks import BENCHMARKS, NINE
from eval.vlm.results import TASK, abilities_of, beside_paper, category_table, write_radar

_SAME = ("label", "run", "model", "weights", "template", "precision", "engine", "answer")
_PAPER_BASE = "InternLM2-7B with CLIP ViT-L/14-336"


@dataclass
class Line:
    """One model, evaluated in one way into one folder.

    Args:
        label: unique on the page.
        folder: of the evaluation.
        found: name of a benchmark -> its results.
        values: name of a benchmark -> its headline in percent.
        about: the results of one of its benchmarks, which say how the model was asked.
    """

    label: str
    folder: Path
    about: Mapping[str, Any]
    found: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    values: dict[str, float | None] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """How it was asked."""
        return str(self.about.get("answer", "generate"))


def benchmarks_section(material: Material, plots: Path) -> Section | None:
    """Tables, radars and what differs from the paper's setting."""
    lines = lines_of(material.of(TASK))
    if not lines:
        return None
    blocks: list[Block] = []
    for answer in dict.fromkeys(line.answer for line in lines):
        alike = [line for line in lines if line.answer == answer]
        papers = {line.label: _only(line, paper=True) for line in alike}
        others = {line.label: _only(line, paper=False) for line in alike}
        for rows in (papers, others):
            rows = {label: values for label, values in rows.items() if values}
            if rows:
                blocks.append(beside_paper(rows, answer))
    beside = [line for line in lines if _only(line, paper=True)]
    if beside:
        blocks += [Heading("What differs from the paper's setting"), Text("\n\n".join(differences(beside)))]
    blocks += _radars(lines, plots)
    for line in lines:
        tables: list[Block] = [category_table(BENCHMARKS[name], content) for name, content in line.found.items()]
        notes = [f"{name}: {note}" for name, content in line.found.items() for note in content.get("notes", [])]
        tables += [Text("\n\n".join(notes))] if notes else []
        blocks += [Folded(f"Every category of {line.label}", tables)] if tables else []
    title = "Vision-language benchmarks"
    return Section(f"{title} beside [M] Table 5" if beside else title, blocks)


def lines_of(evaluations: Sequence[Evaluation]) -> list[Line]:
    """The rows of a table: benchmarks that were measured with the same weights in the same way into one folder."""
    found: dict[tuple[Any, ...], Line] = {}
    for each in evaluations:
        content = each.content
        if "benchmark" not in content:  # the row over benchmarks whose own results are not there
            values = {name: value for name, value in content["metrics"].items() if name in BENCHMARKS}
            found[each.file, ""] = Line(str(content["label"]), each.file.parent, content, values=values)
            continue
        folder = each.file.parent.parent if "label" in content else each.file.parent
        key = (folder, *(str(content.get(name)) for name in _SAME))
        label = str(content.get("label") or f"{Path(str(content.get('predictions', folder))).stem} (predictions)")
        line = found.setdefault(key, Line(label, folder, content))
        line.found[str(content["benchmark"])] = content
        line.values[str(content["benchmark"])] = content["headline"]
    lines = list(found.values())
    labels = [line.label for line in lines]
    for line in lines:
        if labels.count(line.label) > 1:
            how = ", by likelihood" if line.answer == "likelihood" else ""
            line.label = f"{line.label}{how}, {line.folder}"
    return lines


def check(each: Evaluation) -> list[Table]:
    """Use an evaluation as the page does; raises where it is not what it says."""
    content = each.content
    [line] = lines_of([each])
    if "benchmark" not in content:
        return [beside_paper({line.label: line.values}, line.answer)]
    if content["benchmark"] not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {content['benchmark']!r}")
    abilities_of(content["metrics"])
    "".join(content.get("notes", []))
    whole = category_table(BENCHMARKS[content["benchmark"]], content)
    return [beside_paper({line.label: line.values}, line.answer), whole]


def _only(line: Line, *, paper: bool) -> dict[str, float | None]:
    """The values of the paper's benchmarks, or of the others."""
    titles = {BENCHMARKS[name].title for name in NINE}
    return {name: value for name, value in line.values.items() if (BENCHMARKS[name].title in titles) == paper}


def differences(lines: Sequence[Line]) -> list[str]:
    """In plain words what keeps our rows from being the paper's experiment; a sentence each."""
    found = [
        f"[M] fine-tuned {_PAPER_BASE} on the 665K mix and generated answers with VLMEvalKit; most of its table could "
        "not be read, and stands empty here."
    ]
    for line in lines:
        told = [f"base {base_of(line)}"]
        if line.answer == "likelihood":
            told.append("options ranked by their likelihood instead of an answer generated and read")
        engine = line.about.get("engine")
        if engine == "own":
            told.append("mosgoat's own inference and scoring by VLMEvalKit's rules")
        elif engine is None:
            told.append("answers from elsewhere, scored by VLMEvalKit's rules")
        partly = [name for name, content in line.found.items() if content.get("incomplete_allowed")]
        if partly:
            told.append(f"allowed to be incomplete: {listed(partly)}")
        other = [name for name in line.found if BENCHMARKS[name].title in _titles() and name not in NINE]
        if other:
            told.append(f"another split or version than the nine's: {listed(other)}")
        found.append(f"{line.label}: {'; '.join(told)}.")
    return found


def _titles() -> set[str]:
    return {BENCHMARKS[name].title for name in NINE}


def base_of(line: Line) -> str:
    """What a model was made of, as far as its results and its run still tell."""
    model, run = line.about.get("model"), line.about.get("run")
    if model:
        return str(model)
    if not run:
        return "unknown"
    try:
        config = read_config(Path(str(run))).get("model") or {}
    except (UserError, OSError):
        return f"unknown: its run {run} is not there any more"
    keys = ("name", "language_model", "vision_tower", "quantization")
    parts = [config.get(key) for key in keys] if isinstance(config, dict) else []
    return " + ".join(str(part) for part in parts if part and part != "none") or "unknown"


def _radars(lines: Sequence[Line], plots: Path) -> list[Block]:
    """One radar for each benchmark with abilities, all models on it."""
    figures, text = [], list[Block]()
    for name in dict.fromkeys(name for line in lines for name in line.found):
        having = {line.label: line.found[name] for line in lines if name in line.found}
        if len(having) > LINES:
            text.append(Text(f"The radar of {name} shows the first {LINES} of {len(having)} models."))
            having = dict(list(having.items())[:LINES])
        path = write_radar(plots / f"radar_{name}.png", having)
        if path is not None:
            caption = f"Accuracy by ability on {name}, as [M] Figure 5 shows it; each from its results.json."
            figures.append(Figure(path, f"Radar of the abilities on {name} of {', '.join(having)}.", caption))
    return [Heading("Abilities"), *text, Figures(figures)] if figures else []
