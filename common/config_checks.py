"""What is impossible in a recipe and can be seen without a model and without torch, one sentence each.

Every check gives a list that is empty where all is sound, so that a pipeline adds them up and `require_sound` names
everything at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_args

from common.config import OPTIONS, AdapterConfig, Method, ScalingRule, TrainConfig, uses_alpha
from common.errors import UserError

# More processes than this on one machine are a slip of the finger.
MOST_WORKERS = 1024


def adapter_problems(config: AdapterConfig) -> list[str]:
    """All impossible values of an adapter section, one sentence each, empty where it is sound."""
    found = []
    options = OPTIONS[config.method]
    for key in sorted(frozenset.union(*OPTIONS.values())):
        value = getattr(config, key)
        if value is not None and key not in options and (key, value) != ("dropout", 0):
            able = ", ".join(method for method in get_args(Method) if key in OPTIONS[method])
            found.append(
                f"adapter.{key}={value} has no effect with adapter.method={config.method}; "
                f"remove it, or choose a method that uses it: {able}"
            )
    if config.alpha is not None and "alpha" in options and not uses_alpha(config):
        found.append(
            f"adapter.alpha={config.alpha} has no effect with adapter.scaling={config.scaling or 'theory'}; "
            f"remove it, or set adapter.scaling to alpha_over_r, alpha_over_sqrt_r or alpha_over_expert_rank"
        )
    found += value_problems(config, "adapter.")
    found += _scaling_problems(config)
    if config.r < 1:
        found.append(f"adapter.r={config.r} must be at least 1")
    found += _range_problems(config)
    if config.method == "ts_mixing" and config.r % 2:
        found.append(f"adapter.r={config.r} must be even for ts_mixing: the butterfly has two halves")
    if "num_experts" in options:
        found += _expert_problems(config)
    if config.init_r is not None and config.init_r <= config.r:
        found.append(f"adapter.init_r={config.init_r} must exceed adapter.r={config.r}, which is kept of it")
    return found


def _range_problems(config: AdapterConfig) -> list[str]:
    found = []
    for key in ("dropout", "rank_dropout", "module_dropout"):
        value = getattr(config, key)
        if value is not None and not 0 <= value < 1:
            found.append(f"adapter.{key}={value} must lie in [0, 1)")
    for key in ("beta1", "beta2"):
        value = getattr(config, key)
        if value is not None and not 0 < value < 1:
            found.append(f"adapter.{key}={value} must lie strictly between 0 and 1")
    for key in ("alpha", "scaling", "rho", "eta"):
        value = getattr(config, key)
        if isinstance(value, int | float) and value <= 0:
            found.append(f"adapter.{key}={value} must be positive")
    for key in ("balance_coef", "orthogonal_coef", "singular_coef", "tinit", "tfinal", "depth"):
        value = getattr(config, key)
        if value is not None and value < 0:
            found.append(f"adapter.{key}={value} must not be negative")
    for key in ("delta_t", "num_directions", "dash_steps"):
        value = getattr(config, key)
        if value is not None and value < 1:
            found.append(f"adapter.{key}={value} must be at least 1")
    if config.decompose_factor is not None and config.decompose_factor < 1 and config.decompose_factor != -1:
        found.append(f"adapter.decompose_factor={config.decompose_factor} must be -1 or at least 1")
    return found


def _scaling_problems(config: AdapterConfig) -> list[str]:
    options = OPTIONS[config.method]
    if "scaling" not in options:
        return []
    impossible = [] if "num_experts" in options else ["alpha_over_expert_rank"]
    if config.method in ("lora", "dora"):  # PEFT's own know no such rule
        impossible.append("theory")
    if config.method == "neat":  # which has no alpha
        impossible = list(get_args(ScalingRule))
    if config.scaling not in impossible:
        return []
    able = [rule for rule in get_args(ScalingRule) if rule not in impossible]
    words = f"{', '.join(able)} or a number" if able else "a number"
    return [f"adapter.scaling={config.scaling} is not for {config.method}; use {words}"]


def _expert_problems(config: AdapterConfig) -> list[str]:
    experts, top_k = config.experts, config.chosen_experts
    if experts < 2:
        return [f"adapter.num_experts={experts} must be at least 2"]
    found = []
    if config.r % experts and config.method != "full_moe":
        fitting = ", ".join(str(experts * i) for i in (1, 2, 3))
        found.append(f"adapter.r={config.r} is not a multiple of adapter.num_experts={experts}; use {fitting}, ...")
    if not 1 <= top_k <= experts:
        found.append(f"adapter.top_k={top_k} must lie between 1 and adapter.num_experts={experts}")
    return found


def train_problems(config: TrainConfig) -> list[str]:
    """All impossible values of a train section, one sentence each, empty where it is sound."""
    found = []
    least = {
        "batch_size": 1,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 0,
        "weight_decay": 0,
        "max_grad_norm": 0,
        "evaluate_every": 0,
        "save_every": 0,
        "keep_checkpoints": 1,
        "log_every": 1,
        "max_steps": 1,
    }
    found += at_least(config, "train", least)
    if config.warmup_steps >= 1 and config.warmup_steps != int(config.warmup_steps):
        found.append(f"train.warmup_steps={config.warmup_steps} must be a whole number, or a share below 1")
    for key in ("epochs", "learning_rate"):
        value = getattr(config, key)
        if value is not None and value <= 0:
            found.append(f"train.{key}={value} must be positive")
    found += value_problems(config, "train.")
    accumulation = config.gradient_accumulation_steps
    if accumulation > 0 and config.batch_size % accumulation:
        found.append(
            f"train.batch_size={config.batch_size} is not a multiple of "
            f"train.gradient_accumulation_steps={accumulation}"
        )
    return found


def run_problems(seed: int, num_workers: int | None) -> list[str]:
    """A seed or a number of workers that cannot be."""
    found = [] if seed >= 0 else [f"seed={seed} must not be negative"]
    if num_workers is not None and not 0 <= num_workers <= MOST_WORKERS:
        found.append(f"data.num_workers={num_workers} must lie between 0 and {MOST_WORKERS}")
    return found


def frozen_base_problems(method: Method, pipeline: str, reason: str) -> list[str]:
    """A method that trains whole layers of the base, where the base stays frozen: `reason` says which."""
    if method not in ("full", "linear_probe", "full_moe"):
        return []
    return [
        f"adapter.method={method} is not for {pipeline}, where {reason}; use an adapter method such as lora, moslora "
        "or goat"
    ]


def part_rank_problems(r: int | None, section: str, adapter: AdapterConfig) -> list[str]:
    """A rank of its own, for a part of the model, that the method of the adapter section cannot have."""
    if r is None:
        return []
    found = [] if r >= 1 else [f"{section}.r={r} must be at least 1"]
    if "num_experts" in OPTIONS[adapter.method] and adapter.experts > 0 and r % adapter.experts:
        found.append(f"{section}.r={r} is not a multiple of adapter.num_experts={adapter.experts}")
    return found


def idle_problems(section: Any, name: str, keys: Iterable[str], switch: str) -> list[str]:
    """Keys of a section that are given and have no effect with `switch`, such as `tower.adapt=False`."""
    return [
        f"{name}.{key}={getattr(section, key)} has no effect with {switch}"
        for key in keys
        if getattr(section, key) is not None
    ]


def at_least(section: Any, name: str, least: Mapping[str, float]) -> list[str]:
    """Values of a section that are given and less than their bound.

    Args:
        section: a dataclass.
        name: of it in a recipe.
        least: key -> bound.
    """
    given = ((key, getattr(section, key), bound) for key, bound in least.items())
    return [
        f"{name}.{key}={value} must be at least {bound}"
        for key, value, bound in given
        if value is not None and value < bound
    ]


def value_problems(section: Any, prefix: str = "") -> list[str]:
    """Values that no key can mean: not finite, beyond any count, an empty text or list.

    Args:
        section: a dataclass; its own values are looked at, not those of the dataclasses in it.
        prefix: in front of its keys, such as `train.`.
    """
    found = []
    for key in (each.name for each in fields(section)):
        value = getattr(section, key)
        if isinstance(value, float) and not math.isfinite(value):
            found.append(f"{prefix}{key}={value} must be a finite number")
        elif isinstance(value, int) and abs(value) >= 2**32:
            found.append(f"{prefix}{key}={value} must be less than {2**32}")
        elif isinstance(value, str) and not value.strip():  # what an unset shell variable leaves
            found.append(f"{prefix}{key} is an empty text; give a value, or leave the key out")
        elif value == [] and key != "trackers":
            found.append(f"{prefix}{key} is an empty list; name at least one, or leave the key out")
    return found


def require_sound(problems: Iterable[str]) -> None:
    """Raise one `UserError` that lists every problem, or return if there is none."""
    lines = list(problems)
    if lines:
        head = "this recipe cannot run:" if len(lines) == 1 else f"this recipe has {len(lines)} problems:"
        raise UserError("\n  - ".join([head, *lines]))
