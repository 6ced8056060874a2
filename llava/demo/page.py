"""The llava demo's page: questions, pictures, and answers before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.reporting.labels import method_label
from common.reporting.page import Exchange, Exchanges, Facts, Figure, Figures, Page, Section, Text, write_page
from common.reporting.tables import Column, Row, Table, render_text
from llava.config import LlavaRecipe
from llava.demo.measure import Answer, Measured
from llava.demo.scenes import HELD_OUT, KINDS

CHANCE = 0.25
TITLE = "A small LLaVA learns to answer questions"


def result_table(before: Measured, after: Measured) -> Table:
    """Accuracy on the test questions before and after, over all of them and by kind."""
    columns = [Column("questions", 0, None), Column("before, %", 1, None), Column("after, %", 1, None)]
    rows = [Row((kind, 100 * before.accuracy(kind), 100 * after.accuracy(kind))) for kind in KINDS]
    rows.append(Row(("all", 100 * before.accuracy(), 100 * after.accuracy())))
    return Table(columns, rows, f"Of {len(after.answers)} test questions with four options each; guessing gives 25 %.")


def summary(before: Measured, after: Measured) -> str:
    """The result for a terminal."""
    (low, high), n = after.interval(), len(after.answers)
    return (
        f"{render_text(result_table(before, after))}\n\n"
        f"before {before.accuracy():.1%}, after {after.accuracy():.1%} of {n} questions "
        f"(95 % interval {low:.1%} to {high:.1%}; guessing gives {CHANCE:.0%})"
    )


def write_demo_page(
    output: Path, folder: Path, before: Measured, after: Measured, results: Mapping[str, Any], recipe: LlavaRecipe
) -> Path:
    """Write `report.html` into `output`.

    Args:
        output: folder of the demo.
        folder: of the drawn sets.
        before: the base's answers.
        after: the trained model's, to the same questions in the same order.
        results: the run's `results.json`.
        recipe: of the run.
    """
    metrics, label = results["metrics"], method_label(recipe.adapter.method)
    pairs = list(zip(before.answers, after.answers, strict=True))[:12]
    exchanges = [_exchange(folder, old, new) for old, new in pairs]
    sections = [
        Section(
            "Result",
            [
                Facts({"before": f"{before.accuracy():.1%}", "after": f"{after.accuracy():.1%}"}, large=True),
                result_table(before, after),
                Text(
                    "Each option is scored by the model's mean log-likelihood per token; the likeliest counts as "
                    f"its answer. Every test question is about one of {len(HELD_OUT)} pairs of colour and shape that "
                    "neither the base nor the training has seen (a question for the number of things has such a pair "
                    "in its picture)." + not_learnt(after)
                ),
            ],
        ),
        Section(
            "Questions and answers",
            [
                Text(
                    "The first twelve test questions: the option that the model finds likeliest, which is what counts, "
                    "and in quotes what it says in its own words."
                ),
                Exchanges(exchanges),
            ],
        ),
        Section(
            "Training",
            [
                Facts(
                    {
                        "adapter": f"{label} of rank {recipe.adapter.r}, language model and vision tower",
                        "trained parameters": f"{metrics['trainable_parameters']:,}",
                        "steps": f"{metrics['steps']:,} of {recipe.train.batch_size} questions",
                        "time": f"{metrics['train_seconds']:.0f} s",
                        "speed": f"{metrics['tokens_per_second']:,.0f} tokens/s",
                    }
                ),
                Figures([Figure(Path(str(recipe.output)) / "plots" / "loss.png", "training loss by step")]),
            ],
        ),
    ]
    lead = (
        "The base, a LLaVA of 1.4 million parameters, describes drawn scenes and was never asked anything. "
        f"{label} adapters and the projector then learn from {results['n']:,} questions in LLaVA's own file format."
    )
    return write_page(output / "report.html", Page(title=TITLE, lead=lead, sections=sections))


def not_learnt(after: Measured) -> str:
    """A sentence about the kinds of questions that the training did not help with, as it must not be overlooked."""
    guessed = [kind for kind in KINDS if after.accuracy(kind) < CHANCE + 0.05]
    return f" Not learnt, no better than guessing: questions for the {' and the '.join(guessed)}." if guessed else ""


def _exchange(folder: Path, old: Answer, new: Answer) -> Exchange:
    def told(answer: Answer) -> str:
        return f"{answer.chosen} {'✓' if answer.right else '✗'} “{answer.said}”"

    return Exchange(
        question=f"{new.question}\n{', '.join(new.options)}?",
        answer=f"before: {told(old)}\nafter: {told(new)}",
        figure=Figure(folder / new.image, f"drawn shapes; the right answer to “{new.question}” is {new.answer}"),
        expected=new.answer,
        right=new.right,
    )
