"""The demo's report: a table, pictures and one HTML page, all made of what the runs measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.config import Method
from common.files import atomic_write
from common.reporting.adapter_sections import load_figure
from common.reporting.labels import method_label
from common.reporting.page import Block, Facts, Figure, Figures, Page, Section, Text, write_page
from common.reporting.plots import plot_bars, plot_confusion
from common.reporting.recipe_sections import environment_facts, recipe_blocks
from common.reporting.runs import read_json
from common.reporting.sections import curve_figure
from common.reporting.tables import Column, Row, Spread, Table, Value, render_markdown, render_text
from vit_classify.demo import builtin_data_dir, builtin_model_dir
from vit_classify.demo.measure import Difference, MethodRuns, collect, difference
from vit_classify.demo.samples import plot_samples

BASELINE, PLAIN = "linear_probe", "lora"
TITLE = "Adapters on signs that the model has never seen"


@dataclass(frozen=True)
class Report:
    """What was written.

    Args:
        table: the result.
        verdicts: what the differences between methods allow to say, one sentence each.
        page: the HTML file.
    """

    table: Table
    verdicts: Sequence[str]
    page: Path

    def __str__(self) -> str:
        """The report for a terminal."""
        return "\n".join([render_text(self.table), "", *self.verdicts])


def write_report(
    output: Path,
    paths: Mapping[str, Mapping[int, Path]],
    failures: Mapping[str, str],
    untuned: Sequence[Method] = (),
) -> Report:
    """Write `report.html`, `table.md` and `plots/` into `output`.

    Args:
        output: folder of the demo.
        paths: method -> seed -> directory of a finished run.
        failures: name of a run that failed -> its message.
        untuned: methods whose learning rate was not chosen for them, which the page must say.

    Raises:
        UserError: a run is damaged.
    """
    methods = collect(paths)
    table, verdicts = result_table(methods), verdicts_of(methods)
    notes = [f"failed and left out: {name}: {message}" for name, message in failures.items()]
    notes += [f"{method_label(method)} was not tuned: it has GOAT's learning rate" for method in untuned]
    atomic_write(output / "table.md", "\n\n".join([render_markdown(table), *verdicts, *notes]) + "\n")
    page = Page(
        title=TITLE,
        lead=_lead(methods),
        sections=_sections(output / "plots", methods, table, verdicts, notes),
        footer=_footer(methods[0]),
    )
    return Report(table, verdicts, write_page(output / "report.html", page))


def result_table(methods: Sequence[MethodRuns]) -> Table:
    """One row per method: accuracy with its spread over the seeds, differences, parameters, time."""
    by_name = {runs.method: runs for runs in methods}
    columns = [
        Column("method"),
        Column("test accuracy, %", digits=1, better=None),
        Column("over linear probe, points", better=None),
        Column("over LoRA, points", better=None),
        Column("trained beside the head", better=None),
        Column("training, s", digits=1, better=None),
        Column("seeds", better=None),
    ]
    rows = [
        Row(
            (
                _label(runs),
                Spread.of(100 * accuracy for accuracy in runs.accuracies),
                _difference_text(runs, by_name.get(BASELINE)),
                _difference_text(runs, by_name.get(PLAIN)) if runs.method != BASELINE else None,
                int(runs.metric("trainable_parameters").mean),
                runs.metric("train_seconds"),
                len(runs.seeds),
            )
        )
        for runs in methods
    ]
    first = methods[0]
    caption = (
        f"Top-1 accuracy on {len(first.pictures)} test pictures of {first.classes} new classes, mean ± standard "
        f"deviation over the seeds; guessing gives {100 / first.classes:.1f} %. Differences with their 95 % interval "
        "over seeds and pictures. Each run used one core, beside others."
    )
    return Table(columns, rows, caption)


def verdicts_of(methods: Sequence[MethodRuns]) -> list[str]:
    """What the runs allow to say about each adapter against the baseline and against LoRA."""
    by_name = {runs.method: runs for runs in methods}
    found = []
    for other in (BASELINE, PLAIN):
        for runs in methods:
            if other in by_name and runs.method not in (BASELINE, other):
                compared = difference(runs, by_name[other])
                if compared:
                    found.append(verdict(_label(runs), _label(by_name[other]), compared))
    return found


def verdict(ours: str, other: str, compared: Difference) -> str:
    """One sentence about two methods that says no more than the difference carries."""
    interval = f"95 % interval {compared.low:+.1f} to {compared.high:+.1f}"
    head = f"{ours} against {other}: {compared.mean:+.1f} points, {interval}"
    if compared.seeds == 1:
        return f"{head}. One seed cannot show whether this is more than chance."
    if compared.is_shown:
        word = "better" if compared.mean > 0 else "worse"
        return f"{head}; {ours} is {word} here, in all {compared.seeds} seeds."
    return f"{head}; these {compared.seeds} seeds do not show a difference."


def _label(runs: MethodRuns) -> str:
    return method_label(runs.method)  # type: ignore[arg-type]


def _difference_text(runs: MethodRuns, other: MethodRuns | None) -> Value:
    if other is None or other is runs:
        return None
    compared = difference(runs, other)
    return None if compared is None else str(compared)


def _lead(methods: Sequence[MethodRuns]) -> str:
    return (
        f"A small vision transformer that knows other signs learns {methods[0].classes} new ones, from the same start "
        "with each method. The accuracies, losses, loads and times on this page were measured in this run."
    )


def _sections(
    plots: Path, methods: Sequence[MethodRuns], table: Table, verdicts: Sequence[str], notes: Sequence[str]
) -> list[Section]:
    facts = {_label(runs): f"{100 * np.mean(runs.accuracies):.1f} %" for runs in methods}
    words = Text("\n\n".join([*verdicts, *notes]))
    sections = [
        Section("Result", [Facts(facts, large=True), Figures([_bars(plots, methods)]), table, words]),
        Section("Training", [Figures([*_curves(plots, methods)])]),
        Section("Answers", [Figures([_samples(plots, methods)], width=760)]),
        Section("Confusions", [Figures(_confusions(plots, methods))]),
    ]
    routed = [runs for runs in methods if _router_file(runs).is_file()]
    if routed:
        sections.append(Section("Router load", [Figures([_router(plots, runs) for runs in routed])]))
    return [
        *sections,
        Section("How this was measured", _protocol(methods)),
        Section("Recipe", recipe_blocks(methods[-1].group), folded=True),
    ]


def _bars(plots: Path, methods: Sequence[MethodRuns]) -> Figure:
    values = {_label(runs): {"new signs": runs.accuracies} for runs in methods}
    chance = {"new signs": 1 / methods[0].classes}
    path = plot_bars(
        plots / "accuracy.png", values, ylabel="test accuracy", reference=chance, reference_label="guessing"
    )
    spoken = ", ".join(f"{_label(runs)} {100 * np.mean(runs.accuracies):.1f} %" for runs in methods)
    return Figure(
        path,
        f"Bars of the test accuracy: {spoken}.",
        "Test accuracy; each dot is a seed, the whisker one standard deviation.",
    )


def _curves(plots: Path, methods: Sequence[MethodRuns]) -> list[Figure]:
    figures = []
    for key, label in (("loss", "training loss"), ("accuracy", "accuracy on training batches")):
        figure = curve_figure([runs.group for runs in methods], plots, f"training_{key}.png", key, label)
        assert figure is not None, "a run of the demo logs more than once"
        caption = f"The {label}, mean over the seeds (thin: as logged); it does not rank methods on new pictures."
        figures.append(replace(figure, caption=caption))
    return figures


def _samples(plots: Path, methods: Sequence[MethodRuns]) -> Figure:
    path = plot_samples(plots / "samples.png", methods, builtin_data_dir("signs"))
    caption = "The first test picture of each class, not chosen by result, and what each method's first seed called it."
    return Figure(path, "Test pictures of every class with the answers of each method.", caption)


def _confusions(plots: Path, methods: Sequence[MethodRuns]) -> list[Figure]:
    classes = list(dict.fromkeys(methods[0].labels.tolist()))
    figures = []
    for runs in methods:
        path = plot_confusion(
            plots / f"confusion_{runs.method}.png", runs.confusion(classes), classes, title=_label(runs)
        )
        caption = f"{_label(runs)}: counts over {len(runs.seeds)} seed{'s' if len(runs.seeds) > 1 else ''}."
        figures.append(Figure(path, f"Confusion matrix of {_label(runs)}.", caption))
    return figures


def _router_file(runs: MethodRuns) -> Path:
    return runs.runs[0].path / "router_load.json"


def _router(plots: Path, runs: MethodRuns) -> Figure:
    path = plots / f"router_load_{runs.method}.png"
    return load_figure(runs.group, path, read_json(_router_file(runs)), "on the test pictures")


def _protocol(methods: Sequence[MethodRuns]) -> list[Block]:
    pretraining = json.loads((builtin_model_dir("signs-vit") / "pretraining.json").read_text(encoding="utf-8"))
    last = pretraining["log"][-1]
    base = (
        f"Base: a vision transformer for 32 px pictures, trained from scratch on {len(pretraining['classes'])} other "
        f"drawn signs ({pretraining['steps']} steps of {pretraining['batch_size']} fresh drawings, seed "
        f"{pretraining['seed']}); it named {last['accuracy']:.1%} of the last drawings of those right. It ships with "
        "the suite; python -m vit_classify.demo.pretrain rebuilds it."
    )
    task = (
        "Task: 18 new signs in three families; inside a family only the pictogram differs, and no pictogram was in the "
        "pretraining. The linear probe trains a new head on the frozen base; an adapter is trained together with "
        "the same head, in every attention and MLP layer."
    )
    fair = (
        "Same for every method: start weights of base and head, data order, augmentation, number of steps, rank, and "
        "the way the learning rate was chosen (unless noted above): from one grid, on drawings used for nothing else. "
        "vit_classify/demo/README.md has that table."
    )
    limits = (
        "What this cannot say: drawings are easier than photographs, the base is tiny, and a few seeds on a few "
        "hundred pictures leave several points of chance. Whether one adapter beats another in general is a question "
        "for the seven sets of the papers, not for this page."
    )
    return [Text("\n\n".join((base, task, fair, limits)))]


def _footer(runs: MethodRuns) -> str:
    facts = environment_facts(runs.runs[0])
    told = [facts[name] for name in ("machine", "packages") if name in facts]
    return " · ".join(["Made by mosgoat vit demo", f"first run started {facts.get('started', 'unknown')}", *told])
