"""Loading adapters of our tuners by PEFT's own calls: every tensor must find its place, or it is an error."""

from __future__ import annotations

from typing import Any, NamedTuple

from peft.tuners.tuners_utils import BaseTuner

from common.errors import UserError


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
            f"the adapter does not fit this model: nothing takes {_listed(unexpected)}; load it onto the base model "
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
                f"the adapter does not fit this model: the file lacks {_listed(missing)}; was it copied whole, and "
                "written for this configuration?"
            )


def require_targets_named(tuner: BaseTuner, config: Any) -> None:
    """Raise `UserError` where a configuration names no layers: PEFT knows none by heart for our tuners."""
    if not config.target_modules:
        raise UserError(
            f"target_modules={config.target_modules} of {type(config).__name__} names no layer; give names or ends of "
            'names of linear layers, such as ["q_proj", "v_proj"]'
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
