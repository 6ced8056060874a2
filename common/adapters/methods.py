"""Put a method on a model: its PEFT configuration, and the checks that give better errors than PEFT's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from common.adapters.quantised import keep_layout, require_plain_weights
from common.adapters.start import require_fitting_rank
from common.adapters.table import METHODS
from common.adapters.tuner import require_linear
from common.config import DEFAULT_ALPHA, OPTIONS, AdapterConfig
from common.errors import UserError
from common.words import did_you_mean

# [M] and [G] train with it; a configuration made in Python has none unless it is given.
RECIPE_DROPOUT = 0.05
_OWN = ("method", "r", "target_modules")  # of `AdapterConfig`, not handed on as an override


def build_config(
    method: str, *, r: int, alpha: float = DEFAULT_ALPHA, target_modules: Sequence[str] | str, **overrides: Any
) -> PeftConfig:
    """The PEFT configuration of a method.

    Args:
        method: a name in `METHODS` that is an adapter.
        r: total rank; without effect on methods that have none.
        alpha: numerator of the scalings named `alpha_over_...`.
        target_modules: names or ends of names of linear layers, or one regular expression.
        **overrides: what `common.config.OPTIONS` lists for the method, and its `extra`: `exclude_modules` and
            `modules_to_save`, for most `rank_pattern` and `alpha_pattern`, for moslora and ts_mixing `mixer_pattern`.
            None stands for "not given".

    Returns:
        PEFT's configuration or ours, for `peft.get_peft_model`.

    Raises:
        UserError: for an unknown method or override, one without effect, or an impossible value.
    """
    if method not in METHODS:
        raise UserError(f"method={method} is unknown; {did_you_mean(method, METHODS)}")
    build = METHODS[method].build
    if build is None:
        raise UserError(f"method={method} is not an adapter and has no PEFT configuration")
    given = {key: value for key, value in overrides.items() if value is not None}
    allowed = (OPTIONS[method] | METHODS[method].extra) - {"alpha", "target_modules"}
    for key, value in given.items():
        if key not in allowed and (key, value) != ("dropout", 0):
            raise UserError(f"{key} has no effect with method={method}; {did_you_mean(key, allowed)}")
    return build(r=r, alpha=alpha, target_modules=target_modules, **{k: v for k, v in given.items() if k in allowed})


def recipe_overrides(config: AdapterConfig) -> dict[str, Any]:
    """What a recipe's adapter section gives to `build_config` beside method, r and targets."""
    given = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in _OWN}
    if config.dropout is None and "dropout" in OPTIONS[config.method]:
        given["dropout"] = RECIPE_DROPOUT
    return {key: value for key, value in given.items() if value is not None}


def attach(
    model: nn.Module,
    config: AdapterConfig,
    default_targets: Sequence[str],
    change: Callable[[PeftConfig], PeftConfig] = lambda config: config,
) -> PeftModel:
    """Put the adapter of a recipe on a model, in place, and freeze everything else.

    Args:
        model: the model.
        config: the adapter section of the recipe; its method must be an adapter.
        default_targets: the pipeline's layers, used when the recipe names none.
        change: what the pipeline does otherwise than the method's configuration, such as another start of A.

    Returns:
        The model wrapped by PEFT.

    Raises:
        UserError: when a target matches nothing, is not a linear layer, or is smaller than r.
    """
    method = METHODS[config.method]
    assert method.build is not None, f"{config.method} is not an adapter"
    targets = list(config.target_modules or default_targets)
    check_targets(model, targets, config)
    require_plain_weights(config.method, model, targets)
    keep_layout(model)
    peft_config = build_config(config.method, r=config.r, target_modules=targets, **recipe_overrides(config))
    return get_peft_model(model, change(peft_config))


def check_targets(
    model: nn.Module,
    targets: Sequence[str],
    config: AdapterConfig,
    *,
    among: Iterable[str] | None = None,
    key: str = "target_modules",
    part: str = "",
) -> None:
    """Raise one `UserError` for a target that matches no layer, or one that an adapter cannot wrap or does not fit.

    Args:
        model: the model.
        targets: names or ends of names of its layers.
        config: the adapter section; its ranks are looked at where the method has any.
        among: names of the modules that are meant; None: all.
        key: that names the targets, for the message.
        part: of the model that they are in, for the message.
    """
    every = dict(model.named_modules())
    names = [name for name in (every if among is None else among) if name]
    # AdaLoRA's matrices begin with init_r rows, which beyond a layer's side would fill the memory
    ranks = {"r": config.r if METHODS[config.method].ranked else None, "init_r": config.init_r}
    for target in targets:
        matches = [name for name in names if name == target or name.endswith("." + target)]
        if not matches:
            known = {name.rpartition(".")[2] for name in names if isinstance(every[name], nn.Linear)}
            where = f" of {part}" if part else ""
            raise UserError(f"{key}: {target!r} matches no layer{where}; {did_you_mean(target, known)}")
        for name in matches:
            layer = require_linear(name, every[name], model.get_submodule(name.rpartition(".")[0]))
            for rank, value in ranks.items():
                if value is not None:
                    require_fitting_rank(value, layer.in_features, layer.out_features, name, key=rank)
