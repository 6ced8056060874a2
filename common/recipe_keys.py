"""What tells two recipes apart: their dotted keys, those that decide what a run computes, and a hash of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Keys, by their last name, that do not change what a run computes, beyond rounding and the draw of dropout.
# (Accumulation does with `loss_mean=micro_batch`; as does the number of processes, which no recipe has: `fit` holds
# the product of the two to that of the checkpoint.)
NEUTRAL_KEYS = frozenset(
    {
        "output",
        "resume",
        "overwrite",
        "cache_dir",
        "num_workers",
        "log_every",
        "trackers",
        "save_every",
        "keep_checkpoints",
        "evaluate_every",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "compile",
    }
)


def plain(recipe: Any) -> dict[str, Any]:
    """A recipe as nested dicts, lists, numbers and strings."""
    values = dataclasses.asdict(recipe) if dataclasses.is_dataclass(recipe) else recipe  # type: ignore[arg-type]
    return json.loads(json.dumps(values, default=str))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _decisive(recipe: Any) -> dict[str, Any]:
    flat = flatten(plain(recipe))
    return {key: value for key, value in flat.items() if key.rsplit(".", 1)[-1] not in NEUTRAL_KEYS}


def changed_keys(before: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two recipes compute something else, with both values, in the order of their names."""
    old, new = _decisive(before), _decisive(now)
    return {key: (old.get(key), new.get(key)) for key in sorted(old | new) if old.get(key) != new.get(key)}


def config_hash(recipe: Any) -> str:
    """Twelve hexadecimal digits that are the same for recipes that compute the same.

    Where a run is written, how often it is logged, saved and evaluated, and how its work is spread over
    workers and micro-batches (`NEUTRAL_KEYS`) does not count.
    """
    text = json.dumps(_decisive(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
