"""Sums of the loss and the metrics since the last line of the log, kept on the device.

Reading a number from a GPU waits for all the work queued on it, so the sums are read only when a line is due.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from common.training import processes


@dataclass
class Window:
    """Running sums of one process over the micro-batches since the last line.

    Args:
        device: where the sums are kept.
    """

    device: torch.device
    _loss: Tensor = field(init=False)
    _items: Tensor = field(init=False)
    _metrics: dict[str, Tensor] = field(init=False)
    _counts: dict[str, Tensor] = field(init=False)
    _load: dict[tuple[str, ...], Tensor] = field(init=False)
    _bad_step: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._bad_step = torch.tensor(float("inf"), device=self.device)
        self.clear()

    def clear(self) -> None:
        """Begin a new window."""
        self._loss = torch.zeros((), device=self.device)
        self._items = torch.zeros((), device=self.device)
        self._metrics = {}
        self._counts = {}
        self._load = {}

    def add(
        self,
        loss: Tensor,
        metrics: Mapping[str, Tensor],
        counts: Mapping[str, Tensor],
        items: Tensor,
        step: int,
        load: Mapping[tuple[str, ...], Tensor] | None = None,
    ) -> None:
        """Count one micro-batch; nothing waits for the device.

        Args:
            loss: this micro-batch's part of the step's loss, 0-dim.
            metrics: means over the micro-batch's supervised items, 0-dim.
            counts: how many of something, such as tokens, the micro-batch held, 0-dim.
            items: number of supervised items, 0-dim.
            step: the optimizer step, counted from 1, that the micro-batch belongs to.
            load: names of layers -> (layers, E), how many of the micro-batch's tokens each expert got.
        """
        loss = loss.detach().float()
        self._loss += loss
        self._items += items
        for name, value in metrics.items():
            # A micro-batch without supervised items has no mean; nan · 0 must not reach the sum.
            weighted = torch.where(items > 0, value.detach().float() * items, 0.0)
            self._metrics[name] = self._metrics.get(name, 0.0) + weighted
        for name, value in counts.items():
            self._counts[name] = self._counts.get(name, 0.0) + value.detach()
        for names, found in (load or {}).items():
            self._load[names] = self._load[names] + found if names in self._load else found
        here = torch.where(loss.isfinite(), float("inf"), float(step))
        self._bad_step = torch.minimum(self._bad_step, here)

    def first_bad_step(self) -> int | None:
        """The first step whose loss was not finite in any process, None if all were; a collective call."""
        first = min(processes.gather(self._bad_step.item()))
        return None if first == float("inf") else int(first)

    def means(self, steps: int) -> dict[str, float]:
        """Mean loss over the window's `steps` and mean metrics over its items; a collective call."""
        names = sorted(self._metrics)
        own = torch.stack([self._loss, self._items, *(self._metrics[name] for name in names)]).tolist()
        loss, items, *sums = (sum(column) for column in zip(*processes.gather(own), strict=True))
        means = {"loss": loss / steps}
        return means | {name: total / max(items, 1.0) for name, total in zip(names, sums, strict=True)}

    def counts(self) -> dict[str, float]:
        """Counts of all processes over the window; a collective call."""
        names = sorted(self._counts)
        own = torch.stack([self._counts[name] for name in names]).tolist() if names else []
        # by name: a process that had nothing but fillers has counted nothing
        found: dict[str, float] = {}
        for counts in processes.gather(dict(zip(names, own, strict=True))):
            found = {name: found.get(name, 0.0) + counts.get(name, 0.0) for name in {**found, **counts}}
        return found

    def router_load(self) -> dict[str, list[float]]:
        """Layer name -> how many tokens of all processes each expert got over the window; a collective call."""
        return _sum_of_loads([load for loads in processes.gather(self._plain_load()) for load in loads])

    def _plain_load(self) -> list[list[Any]]:
        return [[list(names), tokens.tolist()] for names, tokens in self._load.items()]

    def state(self) -> dict[str, Any]:
        """The sums as plain numbers, exact, so that a resumed run logs the same figures."""
        return {
            "loss": self._loss.item(),
            "items": self._items.item(),
            "metrics": {name: value.item() for name, value in self._metrics.items()},
            "counts": {name: value.item() for name, value in self._counts.items()},
            "router_load": self._plain_load(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue the window of `state`."""
        self._loss.fill_(state["loss"])
        self._items.fill_(state["items"])
        self._metrics = {name: torch.tensor(value, device=self.device) for name, value in state["metrics"].items()}
        self._counts = {name: torch.tensor(value, device=self.device) for name, value in state["counts"].items()}
        self._load = {
            (name,): torch.tensor([tokens], device=self.device)
            for name, tokens in _sum_of_loads(state["router_load"]).items()
        }


def merge_windows(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The state of one window that holds the sums of several; of none, an empty one."""

    def summed(part: str) -> dict[str, Any]:
        names = sorted({name for state in states for name in state[part]})
        return {name: sum(state[part].get(name, 0) for state in states) for name in names}

    return {
        "loss": sum(state["loss"] for state in states),
        "items": sum(state["items"] for state in states),
        "metrics": summed("metrics"),
        "counts": summed("counts"),
        "router_load": [load for state in states for load in state["router_load"]],
    }


def _sum_of_loads(loads: list[list[Any]]) -> dict[str, list[float]]:
    total: dict[str, list[float]] = {}
    for names, tokens in loads:
        for name, row in zip(names, tokens, strict=True):
            total[name] = [a + b for a, b in zip(total[name], row, strict=True)] if name in total else row
    return total
