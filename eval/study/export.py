"""A study's results as files: `results.json`, `results.csv`, `votes.csv`, a picture, and tables for the terminal."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.files import atomic_write
from common.reporting.runs import refuse_other_results
from common.reporting.tables import Column, Row, Table, render_csv
from common.write_errors import writing_is_explained
from eval.study.results import Comparison, StudyResults

TASK = "study"
# What no spreadsheet may take for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
NOTE = (
    "win, tie, loss: shares of the votes in percent, [with Wilson's 95 % interval, which takes votes for independent]; "
    "Δ = win - loss in points, [with the 95 % interval over other raters and other pairs]; κ: Fleiss' kappa over the "
    "pairs with two votes or more. [M] Table 6 has this form; its printed figures could not be fetched where this was "
    "written, so they do not stand here."
)


def results_table(results: StudyResults) -> Table:
    """Wins, ties and losses in the form of [M] Table 6."""
    columns = [Column("question", better=None)]
    columns += [Column(name, 1, None) for name in ("win %", "tie %", "loss %", "Δ", "Δ, 95 %")]
    columns += [Column("κ", 2, None), *(Column(name, 0, None) for name in ("votes", "pairs", "raters"))]
    rows = [_row(comparison) for comparison in results.comparisons]
    return Table(
        columns, rows, f"{results.title}: {results.finished} of {len(results.raters)} raters have finished. {NOTE}"
    )


def _row(of: Comparison) -> Row:
    heading = f"{of.first} against {of.second}"
    if not of.votes:
        return Row((of.question.label, *[None] * 6, 0, 0, 0), heading)
    bounds = None
    if of.delta_low is not None and of.delta_high is not None:
        bounds = f"[{100 * of.delta_low:+.1f}, {100 * of.delta_high:+.1f}]"
    shares = (
        f"{100 * part.value:.1f} [{100 * part.low:.1f}, {100 * part.high:.1f}]" for part in (of.win, of.tie, of.loss)
    )
    delta = f"{100 * of.delta:+.1f}"
    return Row((of.question.label, *shares, delta, bounds, of.kappa, of.votes, of.pairs, of.raters), heading)


def results_json(results: StudyResults) -> str:
    """`results.json`: the metrics under names of their own, and every comparison with its intervals."""
    entries = [_entry(comparison) for comparison in results.comparisons]
    metrics: dict[str, float] = {}
    for of, entry in zip(results.comparisons, entries, strict=True):
        name = of.question.key if len(results.methods) == 2 else f"{of.first}/{of.second}/{of.question.key}"
        numbers = ("win", "tie", "loss", "delta", "kappa") if of.votes else ()
        metrics |= {f"{name}/{key}": entry[key] for key in numbers if entry[key] is not None}
    identity = {"title": results.title, "created_at": results.created_at, "methods": list(results.methods)}
    content = {
        "task": TASK,
        "metrics": metrics,
        "n": results.votes,
        "seed": 0,
        "config_hash": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16],
        **identity,
        "pairs": results.pairs,
        "raters": [{"name": r.name, "answered": r.answered, "total": r.total} for r in results.raters],
        "comparisons": entries,
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _entry(of: Comparison) -> dict[str, Any]:
    shares = {"win": of.win, "tie": of.tie, "loss": of.loss}
    return {
        "first": of.first,
        "second": of.second,
        "question": of.question.key,
        "votes": of.votes,
        "raters": of.raters,
        "pairs": of.pairs,
        "shared_pairs": of.shared_pairs,
        **{name: part.value for name, part in shares.items()},
        **{f"{name}_count": part.count for name, part in shares.items()},
        **{f"{name}_interval": [part.low, part.high] for name, part in shares.items()},
        "delta": of.delta,
        "delta_interval": None if of.delta_low is None else [of.delta_low, of.delta_high],
        "kappa": of.kappa,
        "left_share": of.left,
    }


def results_csv(results: StudyResults) -> str:
    """One line for each comparison."""
    entries = []
    for comparison in results.comparisons:
        entry = _entry(comparison)
        for name in [name for name in entry if name.endswith("_interval")]:
            entry[f"{name.removesuffix('_interval')}_low"], entry[f"{name.removesuffix('_interval')}_high"] = entry.pop(
                name
            ) or (None, None)
        entries.append(entry)
    return _csv(list(entries[0]) if entries else [], (entry.values() for entry in entries))


def votes_csv(db: sqlite3.Connection) -> str:
    """One line for each vote; raters are named as they were invited, by number."""
    rows = db.execute(
        "SELECT people.name AS rater, items.subject, items.prompt, items.name, items.seed, one.name AS first, "
        "other.name AS second, question, result, CASE swapped WHEN 1 THEN 'right' ELSE 'left' END AS first_shown, "
        "position + 1 AS position, revision, answered_at FROM votes JOIN tasks USING (rater, pair) "
        "JOIN people ON people.id = votes.rater JOIN pairs ON pairs.id = votes.pair JOIN items ON items.id = item "
        "JOIN methods AS one ON one.id = first JOIN methods AS other ON other.id = second "
        "ORDER BY votes.rater, position, question"
    )
    heads = [column[0] for column in rows.description]
    return _csv(heads, rows)


def _csv(heads: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    # A text that a spreadsheet would run is set in quotation marks of its own.
    safe = ([f"'{v}" if isinstance(v, str) and v.startswith(_FORMULA) else v for v in row] for row in rows)
    return render_csv(heads, safe)


def write_results(db: sqlite3.Connection, results: StudyResults, folder: Path) -> list[Path]:
    """Write the files into a folder, each whole or not at all; returns their paths.

    Raises:
        UserError: the folder cannot be written, or has the results of something else.
    """
    refuse_other_results(folder, TASK)
    with writing_is_explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {
            "results.json": results_json(results),
            "results.csv": results_csv(results),
            "votes.csv": votes_csv(db),
        }.items():
            atomic_write(folder / name, content)
        plot_results(folder / "results.png", results)
    return [folder / name for name in ("results.json", "results.csv", "votes.csv", "results.png", "results.svg")]


def plot_results(path: Path, results: StudyResults) -> Path:
    """Stacked bars of wins, ties and losses, as PNG and SVG.

    Readable without colour: the ties are hatched, and every part says its share.
    """
    from matplotlib import rc_context
    from matplotlib.ticker import PercentFormatter

    from common.reporting import canvas

    shown = [comparison for comparison in results.comparisons if comparison.votes]
    labels = [f"{of.first} / {of.second}\n{of.question.label} (n = {of.votes})" for of in shown]
    # The salt in place of matplotlib's random ids, so that the same votes give the same file.
    with rc_context({**canvas.STYLE, "svg.hashsalt": "study"}):
        figure, axes = canvas.new_figure(8.0, 1.4 + 0.62 * max(1, len(shown)))
        starts = [0.0] * len(shown)
        parts = (
            ("win of the first", canvas.PALETTE[0], "", "white", [of.win.value for of in shown]),
            ("tie", "#d9d9d9", canvas.HATCHES[1], "black", [of.tie.value for of in shown]),
            ("loss", canvas.PALETTE[1], "", "black", [of.loss.value for of in shown]),
        )
        for name, colour, hatch, ink, values in parts:
            bars = axes.barh(labels, values, left=starts, color=colour, hatch=hatch, edgecolor="white", label=name)
            texts = [f"{100 * value:.0f} %" if value >= 0.06 else "" for value in values]
            for text in axes.bar_label(bars, texts, label_type="center", color=ink, fontsize=9):
                if hatch:
                    text.set_bbox({"facecolor": colour, "edgecolor": "none", "pad": 1.0})
            starts = [start + value for start, value in zip(starts, values, strict=True)]
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("share of the votes")
        axes.invert_yaxis()
        axes.grid(visible=False)
        figure.legend(loc="outside upper center", ncols=3, fontsize=9)
        return canvas.save(figure, path, "", svg=True)
