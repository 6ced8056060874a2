"""The dreambooth demo's page: the character, and pictures of it from the same noise before and after."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.reporting.labels import method_label
from common.reporting.page import Block, Facts, Figure, Figures, Page, Section, Text, write_page
from common.reporting.tables import Column, Row, Spread, Table, render_text
from dreambooth.config import DreamboothRecipe
from dreambooth.demo.measure import Measured, gains
from dreambooth.generate_plan import BASE
from dreambooth.grid_pages import GRIDS
from dreambooth.manifest import read_manifest

TITLE = "A small SDXL learns a character"


@dataclass(frozen=True)
class Outcome:
    """What the demo found.

    Args:
        subject: the character.
        recipe: of one of the runs; they differ in method and seed alone.
        results: name of a run -> content of its `results.json`.
        measured: name of a run, or `base` -> what its pictures show.
        real: mean cosine between two real pictures.
    """

    subject: str
    recipe: DreamboothRecipe
    results: Mapping[str, Mapping[str, Any]]
    measured: Mapping[str, Measured]
    real: float

    def by_method(self) -> dict[str, list[str]]:
        """Method -> names of its runs, one for each seed."""
        found: dict[str, list[str]] = {}
        for name, result in self.results.items():
            found.setdefault(result["method"], []).append(name)
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything that was measured, as plain values."""
        return {
            "subject": self.subject,
            "real_similarity": self.real,
            "gains": gains(self.measured),
            "measured": [each.to_json() for each in self.measured.values()],
        }


def result_table(outcome: Outcome) -> Table:
    """Subject similarity and what is shown, before and after; mean and deviation over seeds where there are several."""
    columns = [
        Column("pictures of", 0, None),
        Column("subject similarity", 3, None),
        Column("gain", 3, None),
        Column("the figure, %", 0, None),
        Column("the background, %", 0, None),
    ]
    base, rose = outcome.measured[BASE], gains(outcome.measured)
    rows = [Row(("the base", base.similarity, None, 100 * base.figure, _percent(base)))]
    for method, names in outcome.by_method().items():
        made = [outcome.measured[name] for name in names]
        rows.append(
            Row(
                (
                    method_label(method),  # type: ignore[arg-type]
                    Spread.of(each.similarity for each in made),
                    Spread.of(rose[name] for name in names),
                    Spread.of(100 * each.figure for each in made),
                    Spread.of(_percent(each) for each in made),
                )
            )
        )
    rows.append(Row(("real pictures among themselves", outcome.real, None, None, None)))
    count, seeds = len(base.shown), max(map(len, outcome.by_method().values()))
    runs = f", and {seeds} runs of each method with different seeds" if seeds > 1 else ""
    return Table(columns, rows, f"Over {count} pictures of each model, from the same prompts and the same noise{runs}.")


def summary(outcome: Outcome) -> str:
    """The result for a terminal."""
    lines = [
        f"{name}: subject similarity {outcome.measured[BASE].similarity:.3f} before, "
        f"{outcome.measured[name].similarity:.3f} after"
        for name in outcome.results
    ]
    return "\n".join([render_text(result_table(outcome)), "", *lines])


def write_demo_page(output: Path, outcome: Outcome) -> Path:
    """Write `report.html` into `output`.

    Args:
        output: folder of the demo, with `pictures` as `mosgoat dreambooth generate` leaves it.
        outcome: what was found.
    """
    word, token = next(iter(outcome.results.values()))["class_word"], outcome.recipe.data.token
    method, names = next(iter(outcome.by_method().items()))
    after = statistics.fmean(outcome.measured[name].similarity for name in names)
    facts = {
        "before": f"{outcome.measured[BASE].similarity:.2f}",
        f"after, {method_label(method)}": f"{after:.2f}",  # type: ignore[arg-type]
        "real pictures": f"{outcome.real:.2f}",
    }
    sections = [
        Section("Subject similarity", [Facts(facts, large=True), result_table(outcome), Text(_MEASURE)]),
        Section("Before and after", _grids(output, outcome, word)),
        Section("Training", [Facts(_training(outcome, next(iter(outcome.results))))]),
    ]
    count = next(iter(outcome.results.values()))["n"]
    lead = (
        "The base draws plain cats, dogs, birds and more before six backgrounds, and has never seen a "
        f"{word} like this one. From {count} pictures, adapters learn what “{token} {word}” is."
    )
    return write_page(output / "report.html", Page(title=TITLE, lead=lead, sections=sections))


_MEASURE = (
    "Subject similarity is DreamBooth's measure: the mean cosine between the features of a generated picture and those "
    "of every real picture of the subject. The features are those of a small network that was trained to tell drawn "
    "characters of random colours apart whatever their background, and knows neither this character nor these models; "
    "DINO and CLIP, which “mosgoat eval subjects” uses, know photographs and would have to be fetched.\n\n"
    "A subject learnt at the cost of all else would be of no use: the last two columns say in how many pictures the "
    "same network finds the figure, and the background that the prompt asks for."
)


def _grids(output: Path, outcome: Outcome, word: str) -> list[Block]:
    folder = output / "pictures" / GRIDS / outcome.subject
    manifest = read_manifest(output / "pictures" / BASE / outcome.subject)
    figures = [
        Figure(
            folder / f"{number:02}.webp",
            f"pictures of “{manifest.prompt_text(number)}”, rows: base and adapters, columns: noise",
            manifest.prompt_text(number),
        )
        for number in range(len(manifest.prompts))
    ]
    return [
        Figures([Figure(folder / "real.webp", f"the drawn {word}", "the pictures that it was learnt from")], 320),
        Text("A sheet for each prompt. Pictures below each other come from the same noise."),
        Figures(figures, 420),
    ]


def _training(outcome: Outcome, name: str) -> dict[str, str]:
    recipe, metrics = outcome.recipe, outcome.results[name]["metrics"]
    methods: Sequence[str] = [method_label(method) for method in outcome.by_method()]  # type: ignore[arg-type]
    return {
        "adapters": f"{', '.join(methods)} of rank {recipe.adapter.r} on the UNet's attention",
        "trained parameters": f"{metrics['trainable_parameters']:,} ({name})",
        "steps": f"{metrics['steps']:,} of {recipe.train.batch_size} pictures",
        "time": f"{metrics['train_seconds']:.0f} s",
    }


def _percent(measured: Measured) -> float:
    share = measured.background
    assert share is not None, "every prompt of the demo asks for a background"
    return 100 * share
