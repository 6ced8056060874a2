"""Groups of an optimizer for parameters that have a learning rate of their own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


def give_own_rates(optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float]) -> None:
    """Move parameters into groups with their own peak learning rate; before the schedule is made.

    Args:
        optimizer: of `model`, fresh.
        model: whose names are looked at.
        rates: part of a parameter's name -> its peak learning rate.
    """
    named = {id(p): name for name, p in model.named_parameters()}
    for part, rate in rates.items():
        found = 0
        for group in list(optimizer.param_groups):
            own = [p for p in group["params"] if part in named[id(p)]]
            if own:
                group["params"] = [p for p in group["params"] if part not in named[id(p)]]
                optimizer.add_param_group({**group, "params": own, "lr": rate})
                found += len(own)
        assert found, f"no trained parameter has {part!r} in its name"
