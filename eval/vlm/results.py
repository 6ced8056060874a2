"""What is left of an evaluation: results.json, tables, the radar of abilities, the row beside the paper's.

OUTPUT/<BENCHMARK>/results.json  rows.csv  categories.csv  radar.png  radar.svg     one benchmark
OUTPUT/results.json  results.csv  table.md                                          the row over all of them
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import atomic_write, write_json
from common.reporting.compare import MeasuredRow, beside_published
from common.reporting.published import load_published
from common.reporting.radar import plot_radar
from common.reporting.tables import Column, Row, Table, render_markdown
from common.write_errors import writing_is_explained
from eval.vlm.benchmarks import BENCHMARKS, NINE, Benchmark
from eval.vlm.scoring import Scores, main_figure

TASK = "vlm"
ABILITIES = "l2-category"  # MMBench's name for the axes of [M] Figure 5
MISSING = "missing_categories"  # of MME's metrics


def write_results(
    folder: Path, benchmark: Benchmark, scores: Scores, *, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write what was measured on one benchmark.

    Args:
        folder: where to; made if it is absent.
        benchmark: what was measured.
        scores: from `eval.vlm.scoring.score`.
        more: further entries of results.json, such as the run, the engine and the settings.

    Returns:
        The content of results.json. `headline` is the one number that [M] Table 5 prints, in percent, None where there
        is no score; `not_scored` says why there is none.

    Raises:
        UserError: the folder cannot be written.
    """
    figure = main_figure(benchmark, scores.metrics)
    content: dict[str, Any] = {
        "task": TASK,
        "benchmark": benchmark.name,
        "family": benchmark.family,
        **({"about": benchmark.about} if benchmark.about else {}),
        **(more or {}),
        "metrics": scores.metrics,
        "headline": None if figure is None else figure[1],
        "headline_is": None if figure is None else figure[0],
        "n": scores.n,
        "notes": list(scores.notes),
    }
    if scores.not_scored:
        content["not_scored"] = scores.not_scored
    with writing_is_explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("results.json", "radar.png", "radar.svg"):  # of an earlier evaluation, with other numbers
            (folder / name).unlink(missing_ok=True)
        _write_csv(folder / "rows.csv", scores.rows)
        categories = [dict(zip(("group", "name", "value"), row, strict=True)) for row in _leaves(scores.metrics)]
        _write_csv(folder / "categories.csv", categories)
        write_radar(folder / "radar.png", {benchmark.name: content})
        write_json(folder / "results.json", content)  # last: a folder with it is whole
    return content


def abilities_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The axes of the radar with their values in percent; empty for a benchmark without them.

    Of several splits it is those of `test`, else of the first, as the headline is.
    """
    part = metrics.get("test", next(iter(metrics.values()), None)) if "overall" not in metrics else metrics
    found = part.get(ABILITIES) if isinstance(part, Mapping) else None
    return {str(name): float(value) for name, value in found.items()} if isinstance(found, Mapping) else {}


def category_table(benchmark: Benchmark, content: Mapping[str, Any]) -> Table:
    """Every number of a benchmark's metrics, a line each.

    Args:
        benchmark: what was measured.
        content: from `write_results`.
    """
    rows = [Row((name, value), group) for group, name, value in _leaves(content["metrics"])]
    how = ", options ranked by likelihood" if content.get("answer") == "likelihood" else ""
    about = f" ({benchmark.about})" if benchmark.about else ""
    caption = f"{benchmark.name}{about}: {content['n']:,} questions{how}"
    return Table([Column("category"), Column("value", digits=1, better=None)], rows, caption)


def _leaves(metrics: Mapping[str, Any], group: str = "") -> list[tuple[str, str, float | None]]:
    """(group, name, value) of every number, plain ones before those in groups."""
    plain: list[tuple[str, str, float | None]] = [
        (group, str(key), value) for key, value in metrics.items() if isinstance(value, (int, float))
    ]
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            plain += _leaves(value, ", ".join(filter(None, (group, str(key)))))
    return plain


def write_summary(
    folder: Path,
    found: Mapping[str, Mapping[str, Any]],
    label: str,
    *,
    suffix: str = "",
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the row over all benchmarks, with the average of [M] Table 5 where all nine are there.

    Args:
        folder: above the folders of the benchmarks.
        found: name of a benchmark -> its results.json.
        label: what was measured, as a table prints it.
        suffix: behind the files' names, for answers of another kind.
        more: further entries of results.json.

    Returns:
        The content of results.json: `metrics` holds every headline and the `average`, or None for it with `no_average`,
        the reason.
    """
    values = {name: content["headline"] for name, content in found.items()}
    reason = _why_no_average(values, found)
    content = {
        "task": TASK,
        **(more or {}),
        "label": label,
        "metrics": {**values, "average": None if reason else average(values)},
        "no_average": reason,
        "n": sum(content["n"] for content in found.values()),
        "not_scored": {name: each["not_scored"] for name, each in found.items() if each.get("not_scored")},
    }
    answer = str(content.get("answer", "generate"))
    with writing_is_explained(folder):
        _write_csv(folder / f"results{suffix}.csv", [{"name": label, **content["metrics"]}])
        atomic_write(folder / f"table{suffix}.md", render_markdown(beside_paper({label: values}, answer)) + "\n")
        write_json(folder / f"results{suffix}.json", content)
    return content


def _why_no_average(values: Mapping[str, float | None], found: Mapping[str, Mapping[str, Any]]) -> str | None:
    by_title = _by_title(values)
    missing = [title for title in _titles() if by_title.get(title) is None]
    if len(missing) == len(NINE):
        return "none of the nine was measured"
    if missing:
        return f"without a score: {', '.join(missing)}"
    partly = [
        name
        for name, content in found.items()
        if content["metrics"].get(MISSING) or (content.get("incomplete_allowed") and content["notes"])
    ]
    return f"measured in part only: {', '.join(partly)}" if partly else None


def average(values: Mapping[str, float | None]) -> float | None:
    """The mean over the nine benchmarks, as [M] Table 5 has it; None where one of them lacks its value.

    Args:
        values: name of a benchmark -> percent; MMBench may be of any version and split, one English and one Chinese.
    """
    by_title = _by_title(values)
    numbers = [value for title in _titles() if (value := by_title.get(title)) is not None]
    return sum(numbers) / len(NINE) if len(numbers) == len(NINE) else None


def _titles() -> list[str]:
    return [BENCHMARKS[name].title for name in NINE]


def _by_title(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Title -> value; of two benchmarks with one title the one among the nine counts, else the first."""
    ordered = sorted((name for name in values if name in BENCHMARKS), key=lambda name: name not in NINE)
    found: dict[str, float | None] = {}
    for name in ordered:
        found.setdefault(BENCHMARKS[name].title, values[name])
    return found


def beside_paper(rows: Mapping[str, Mapping[str, float | None]], answer: str = "generate") -> Table:
    """[M] Table 5 with rows of ours below it.

    Args:
        rows: label -> name of a benchmark -> percent; other names, such as `average`, are passed over.
        answer: how ours were answered; the paper's are generated.

    Returns:
        The paper's table with ours below; ours alone where none of its benchmarks was measured.
    """
    published = load_published("moslora_table5")
    key_of = {name: key for key, name in published.columns}
    measured = {title for values in rows.values() for title in _by_title(values)}
    if measured and measured.isdisjoint(key_of):
        return _ours_alone(rows, answer)
    ours = [
        MeasuredRow(
            label,
            {key_of.get(title, title): {0: value} for title, value in _by_title(values).items() if value is not None},
        )
        for label, values in rows.items()
    ]
    ranked = "measured, options ranked by likelihood: not comparable with generated answers"
    return beside_published(published, ours, heading="measured" if answer == "generate" else ranked)


def _ours_alone(rows: Mapping[str, Mapping[str, float | None]], answer: str) -> Table:
    """Benchmarks that the paper does not have, beside nothing."""
    names = list(dict.fromkeys(name for values in rows.values() for name in values if name in BENCHMARKS))
    told = ["options ranked by likelihood"] if answer == "likelihood" else []
    told += [BENCHMARKS[name].about for name in names if BENCHMARKS[name].about]
    columns = [Column("model"), *(Column(BENCHMARKS[name].title, 1) for name in names)]
    rows_of = [Row((label, *map(values.get, names))) for label, values in rows.items()]
    return Table(columns, rows_of, " ".join(f"{text[0].upper()}{text[1:]}." for text in told))


def write_radar(path: Path, found: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """Draw the abilities of one or several models on one radar; None where fewer than three axes are known.

    Args:
        path: PNG file; an SVG is written beside it.
        found: label -> results.json of the same benchmark.
    """
    lines = {label: abilities_of(content["metrics"]) for label, content in found.items()}
    lines = {label: line for label, line in lines.items() if len(line) >= 3}
    if not lines:
        return None
    names = dict.fromkeys(content["benchmark"] for content in found.values())
    how = ", ranked by likelihood" if any(each.get("answer") == "likelihood" for each in found.values()) else ""
    return plot_radar(path, lines, title=f"{', '.join(names)}: accuracy by ability{how}", svg=True)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline="")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue())
