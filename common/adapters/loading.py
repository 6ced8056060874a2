"""Loading adapters of our tuners by PEFT's own calls: every tensor must find its place, or it is an error."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor

from common.errors import UserError
from common.words import listed


class Keys(NamedTuple):
    """What torch hands to a hook behind `load_state_dict`."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def require_complete(tuner: BaseTuner, keys: Keys) -> None:
    """Raise `UserError` after a `load_state_dict` that left adapter tensors over, or without their values.

    PEFT drops the ones without a word and warns of the others; the model would compute something else than was trained.

    Args:
        tuner: one of ours, whose tensors are NaN until they are loaded.
        keys: names from the root of what was loaded.
    """
    unexpected = [key for key in keys.unexpected_keys if f".{tuner.prefix}" in key]
    if unexpected:
        raise UserError(
            f"the adapter does not fit this model: nothing takes {listed(unexpected, 4)}; load it onto the base model "
            "that it was trained on"
        )
    asked = [key for key in keys.missing_keys if f".{tuner.prefix}" in key]
    if asked:
        own: dict[str, Any] = {
            name: value
            for name, value in tuner.state_dict().items()
            if f".{tuner.prefix}" in name and value.device.type != "meta" and value.isnan().all()
        }
        missing = [key for key in asked if any(key == name or key.endswith(f".{name}") for name in own)]
        if missing:
            raise UserError(
                f"the adapter does not fit this model: the file lacks {listed(missing, 4)}; was it copied whole, and "
                "written for this configuration?"
            )


def require_loaded(layer: Any, adapter: str, x: Tensor) -> None:
    """Before the first use of an adapter whose values come from a file, raise `UserError` where they did not.

    transformers' own `load_adapter` loads parameter by parameter, so that `require_complete` is never asked.

    Args:
        layer: one of ours; the adapter is taken off its list `awaited`.
        adapter: its name.
        x: the layer's input.
    """
    if torch.compiler.is_compiling() or x.is_meta:
        return  # a compiled graph cannot look at values, and there are none without data
    stores = {name: getattr(layer, name) for name in (*layer.adapter_layer_names, *layer.frozen_names)}
    values = {name: store[adapter] for name, store in stores.items() if adapter in store}
    missing = [name for name, value in values.items() if value.is_meta or bool(value.isnan().all())]
    if missing:
        raise UserError(
            f"layer {layer.name}: adapter {adapter!r} lacks the values of {listed(missing, 4)}; was its file copied "
            "whole, and loaded onto the base model that it was trained on?"
        )
    layer.awaited.discard(adapter)


def require_targets_named(tuner: BaseTuner, config: Any) -> None:
    """Raise `UserError` where a configuration names no layers: PEFT knows none by heart for our tuners."""
    if not config.target_modules:
        raise UserError(
            f"target_modules={config.target_modules} of {type(config).__name__} names no layer; give names or ends of "
            'names of linear layers, such as ["q_proj", "v_proj"]'
        )
