"""The router load of a training: which share of the tokens each expert of each layer got ([G] Figure 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.files import append_json_line


def summary(load: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The load in three numbers, for the metrics and the trackers; the whole of it is in `router_load.jsonl`.

    Args:
        load: layer name -> how many tokens each of its experts got.

    Returns:
        `router_load_max` and `router_load_min`: the largest and the smallest share of a layer's load that any expert
        of any layer got; `router_load_entropy`: the mean over layers of -Σ p·log p / log E, 1 when balanced and 0 when
        one expert gets everything. Empty where nothing was routed.
    """
    shares = [share for share in map(shares_of, load.values()) if share]
    if not shares:
        return {}
    every = [share for row in shares for share in row]
    return {
        "router_load_max": max(every),
        "router_load_min": min(every),
        "router_load_entropy": math.fsum(map(_entropy, shares)) / len(shares),
    }


def shares_of(tokens: Sequence[float]) -> list[float]:
    """Counts as shares that add up to 1; empty where there was no token."""
    total = math.fsum(tokens)
    return [count / total for count in tokens] if total > 0 else []


def append(file: Path, step: int, load: Mapping[str, Sequence[float]]) -> None:
    """Add the load since the last line to `router_load.jsonl`: `{"step": ..., "tokens": {layer: [count, ...]}}`."""
    tokens = {name.replace("base_model.model.", ""): list(counts) for name, counts in load.items()}
    append_json_line(file, {"step": step, "tokens": tokens})


def _entropy(shares: Sequence[float]) -> float:
    if len(shares) < 2:
        return 1.0
    return -math.fsum(share * math.log(share) for share in shares if share > 0) / math.log(len(shares))
