"""What `mosgoat eval subjects` leaves on the disk and prints: tables, CSV files, a picture, `results.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from common.files import atomic_write, write_json
from common.reporting.published import PublishedTable, load_published
from common.reporting.tables import Column, Row, Spread, Table, Value, render_csv
from eval.subjects.plot import plot_methods
from eval.subjects.scores import (
    METRICS,
    REAL,
    Comparison,
    Measured,
    compare,
    over_subjects,
    prompt_means,
    subject_means,
)

TASK = "dreambooth_subjects"
_PROTOCOL = (
    "Mean cosines: DINO and CLIP-I between every generated and every real picture of a subject, CLIP-T between a "
    "picture and its prompt with the class word but without the token. Means over subjects, ± half of the 95 % t "
    "interval over subjects."
)


def main_table(measured: Measured, published: PublishedTable | None = None, heading: str = "measured") -> Table:
    """Adapters beside the published figures; real pictures on top, which no method can be expected to exceed.

    Args:
        measured: what was measured.
        published: DreamBooth's Table 1; None leaves it out.
        heading: of the measured rows, which says what differs from the protocol.
    """
    adapters = {adapter: _of_adapter(measured, adapter) for adapter in measured.adapters}
    told = {"adapters": adapters, "real": measured.real, "labels": measured.labels, "about": measured.about}
    return table_of(told, published, heading)


def table_of(results: Mapping[str, Any], published: PublishedTable | None = None, heading: str = "measured") -> Table:
    """`main_table` of what `write_results` has written.

    Args:
        results: the content of `results.json`; `adapters`, `real`, `labels` and `about` count.
        published: as for `main_table`; left out where the features are others than the protocol's.
        heading: as for `main_table`.
    """
    adapters, real = results["adapters"], results["real"]
    metrics = [metric for metric in METRICS if any(metric in content["metrics"] for content in adapters.values())]
    columns = [Column("method"), Column("subjects", better=None), Column("pictures", better=None)]
    labels, about = results.get("labels", METRICS), results.get("about", "")
    published = None if about else published
    columns += [Column(labels[metric], 3) for metric in metrics]
    rows = []
    if published is not None:
        keys = [key for key, _ in published.columns]
        for line in published.rows:
            values = [line.values[keys.index(metric)] for metric in metrics]
            rows.append(
                Row((line.name, None, None, *values), f"published, {published.tag}", line.family != "reference")
            )
    rows.append(Row((REAL, len(real), None, *(_real_mean(real, metric) for metric in metrics)), heading, ranked=False))
    for adapter, content in adapters.items():
        made, expected = content["n"], content["expected"]
        count = f"{made}" if made == expected else f"{made} of {expected}"
        spreads = [_spread(content["metrics"][metric]) for metric in metrics]
        rows.append(Row((adapter, len(content["subjects"]), count, *spreads), heading))
    source = f" {published.tag}: {published.title}. {published.source}." if published is not None else ""
    return Table(columns, rows, " ".join(filter(None, (about, _PROTOCOL))) + source)


def _spread(value: Mapping[str, Any]) -> Spread:
    half = None if value["low"] is None else (value["high"] - value["low"]) / 2
    return Spread(value["mean"], half, value["subjects"])


def _real_mean(real: Mapping[str, Mapping[str, float]], metric: str) -> float | None:
    values = [by_metric.get(metric) for by_metric in real.values()]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def comparisons(measured: Measured) -> list[Comparison]:
    """Every two adapters on every metric."""
    pairs = combinations(measured.adapters, 2)
    found = [compare(measured.scores, metric, *pair) for pair in pairs for metric in measured.metrics]
    return [each for each in found if each is not None]


def comparison_table(found: Sequence[Comparison], labels: Mapping[str, str] = METRICS) -> Table:
    """Differences of two adapters on the pictures that both made.

    Args:
        found: from `comparisons`.
        labels: metric -> what the table calls it.
    """
    names = ("first", "second", "measure", "first − second", "95 % interval", "over", "pairs", "first higher, %")
    digits = {"first − second": 4, "first higher, %": 1}
    rows = []
    for each in found:
        difference = each.difference
        interval = "–" if difference.half is None else f"{difference.low:+.4f} … {difference.high:+.4f}"
        pairs = str(each.pictures) if each.pictures == each.of else f"{each.pictures} of {each.of}"
        over = f"{difference.n} {each.over}" if difference.n > 1 else f"1 {each.over[:-1]}"
        values: tuple[Value, ...] = (each.first, each.second, labels[each.metric], difference.mean, interval, over)
        rows.append(Row((*values, pairs, 100 * each.better)))
    caption = (
        "In pairs of pictures with the same subject, prompt and seed. An interval without 0 says that the two differ "
        "beyond what chance does to subjects (not to trainings: each adapter was trained once)."
    )
    return Table([Column(name, digits.get(name, 2), None) for name in names], rows, caption)


def subject_table(measured: Measured) -> Table:
    """Every subject by every adapter."""
    metrics = measured.metrics
    means = {metric: subject_means(measured.scores, metric) for metric in metrics}
    counts: dict[tuple[str, str], int] = {}
    for score in measured.scores:
        counts[score.adapter, score.subject] = counts.get((score.adapter, score.subject), 0) + 1
    rows = []
    for subject in dict.fromkeys(score.subject for score in measured.scores):
        real = measured.real.get(subject, {})
        rows.append(Row((REAL, None, *(real.get(metric) for metric in metrics)), subject, ranked=False))
        rows += [
            Row((adapter, counts[adapter, subject], *(means[metric][adapter, subject] for metric in metrics)), subject)
            for adapter in measured.adapters
            if (adapter, subject) in counts
        ]
    columns = [Column("subject, adapter"), Column("pictures", better=None)]
    return Table([*columns, *(Column(measured.labels[metric], 3) for metric in metrics)], rows)


def write_results(output: Path, measured: Measured, facts: dict[str, Any]) -> dict[str, Any]:
    """Write `results.json`, three CSV files and the picture.

    Args:
        output: the folder; made if need be.
        measured: what was measured.
        facts: what else the results are to say: models, folders, what is missing.

    Returns:
        The content of `results.json`.
    """
    output.mkdir(parents=True, exist_ok=True)
    published = None if measured.about else load_published("dreambooth_table1")
    adapters = {adapter: _of_adapter(measured, adapter) for adapter in measured.adapters}
    several = len(adapters) > 1
    results = {
        "task": TASK,
        "metrics": {
            (f"{adapter}_{metric}" if several else metric): content["metrics"][metric]["mean"]
            for adapter, content in adapters.items()
            for metric in content["metrics"]
        },
        "n": len(measured.scores),
        "expected": sum(measured.expected.values()),
        "adapters": adapters,
        "real": {subject: dict(values) for subject, values in measured.real.items()},
        "comparisons": [_of_comparison(each) for each in comparisons(measured)],
        "unreadable": [[str(path), reason] for path, reason in measured.unreadable],
        "cut_texts": list(measured.cut_texts),
        "labels": {metric: measured.labels[metric] for metric in measured.metrics},
        **({"about": measured.about} if measured.about else {}),
        **facts,
    }
    atomic_write(output / "pictures.csv", _pictures_csv(measured))
    atomic_write(output / "by_prompt.csv", _prompts_csv(measured))
    atomic_write(output / "by_subject.csv", _subjects_csv(measured))
    plot_methods(output / "plots" / "subjects.png", measured, published)
    write_json(output / "results.json", results)  # last: where it is, all the others are
    return results


def _of_adapter(measured: Measured, adapter: str) -> dict[str, Any]:
    own = [score for score in measured.scores if score.adapter == adapter]
    metrics, subjects = {}, dict[str, dict[str, float]]()
    for metric in measured.metrics:
        value = over_subjects(own, metric)[adapter]
        metrics[metric] = {"mean": value.mean, "low": value.low, "high": value.high, "subjects": value.n}
        for (_, subject), mean in subject_means(own, metric).items():
            subjects.setdefault(subject, {})[metric] = mean
    return {"metrics": metrics, "subjects": subjects, "n": len(own), "expected": measured.expected[adapter]}


def _of_comparison(each: Comparison) -> dict[str, Any]:
    difference = each.difference
    return {
        "first": each.first,
        "second": each.second,
        "metric": each.metric,
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "over": each.over,
        "count": difference.n,
        "pairs": each.pictures,
        "of": each.of,
        "first_higher": each.better,
    }


def _pictures_csv(measured: Measured) -> str:
    rows = []
    for score in measured.scores:
        what = (score.adapter, score.subject, score.index, score.prompt, score.seed, score.file.name)
        rows.append((*what, *(f"{score.values[metric]:.6f}" for metric in measured.metrics)))
    return render_csv(("adapter", "subject", "prompt_index", "prompt", "seed", "file", *measured.metrics), rows)


def _prompts_csv(measured: Measured) -> str:
    means = {metric: prompt_means(measured.scores, metric) for metric in measured.metrics}
    keys = dict.fromkeys((score.adapter, score.subject, score.prompt) for score in measured.scores)
    rows = [key + tuple(f"{means[metric][key]:.6f}" for metric in measured.metrics) for key in keys]
    return render_csv(("adapter", "subject", "prompt", *measured.metrics), rows)


def _subjects_csv(measured: Measured) -> str:
    means = {metric: subject_means(measured.scores, metric) for metric in measured.metrics}
    keys = dict.fromkeys((score.adapter, score.subject) for score in measured.scores)
    rows = [key + tuple(f"{means[metric][key]:.6f}" for metric in measured.metrics) for key in keys]
    return render_csv(("adapter", "subject", *measured.metrics), rows)
