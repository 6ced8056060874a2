"""VLMEvalKit's figures, which its status file has under flat names, in the forms of the suite's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.vlm.benchmarks import Benchmark
from eval.vlm.scoring.yes_no import HIGHEST
from eval.vlm.table import Table

# MMBench's abilities as it prints them.
_ABBREVIATIONS = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}


def metrics_of(benchmark: Benchmark, table: Table, figures: Mapping[str, float]) -> dict[str, Any]:
    """VLMEvalKit's flat names as the forms that `eval.vlm.scoring.score` describes, accuracies in percent."""
    if benchmark.family == "vqa":
        return {"accuracy": figures["Overall"]}
    if benchmark.family == "yes_no":
        sums = {"perception": figures["perception"], "cognition": figures["reasoning"]}
        total = sum(sums.values())
        category = {name: value for name, value in figures.items() if name not in ("perception", "reasoning")}
        return {**sums, "total": total, "scaled": 100 * total / HIGHEST, "category": category}
    by_split: dict[str, dict[str, float]] = {}
    for name, value in figures.items():
        split, _, part = name.removeprefix("split=").partition("|")
        by_split.setdefault(split, {})[part] = 100 * value
    found = {split: _abilities(table, parts) for split, parts in by_split.items()}
    return found if benchmark.family == "circular" or set(found) != {"none"} else found["none"]


def _abilities(table: Table, parts: Mapping[str, float]) -> dict[str, Any]:
    metrics: dict[str, Any] = {"overall": parts["Overall"]}
    for key, attribute in (("category", "category"), ("l2-category", "l2_category")):
        names = sorted({getattr(question, attribute) for question in table.questions} - {""})
        values = {name: parts.get(_ABBREVIATIONS.get(name, name)) for name in names}
        if any(value is not None for value in values.values()):
            metrics[key] = {name: value for name, value in values.items() if value is not None}
    return metrics
