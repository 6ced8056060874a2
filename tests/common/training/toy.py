"""A small objective and data set that the tests of the engine train."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.adapters import attach
from common.config import AdapterConfig, Resume, TrainConfig
from common.training import RunDirectory, TrainResult, fit

INPUTS, CLASSES = 12, 5


@dataclass(frozen=True)
class ToyRecipe:
    train: TrainConfig
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    output: str | None = None
    resume: Resume = "auto"
    seed: int = 3


class ToySamples:
    """Random points; a little noise that depends on (epoch, index), as an augmentation does."""

    def __init__(self, size: int, tokens: int = 3) -> None:
        generator = torch.Generator().manual_seed(0)
        self.points = torch.randn(size, tokens, INPUTS, generator=generator)
        self.labels = torch.randint(CLASSES, (size, tokens), generator=generator)
        # The number of supervised items differs from sample to sample.
        self.labels[torch.rand(size, tokens, generator=generator) < 0.3] = -100

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key
        noise = torch.randn(INPUTS, generator=torch.Generator().manual_seed(1000 * epoch + index))
        return {"points": self.points[index] + 0.1 * noise, "labels": self.labels[index]}


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


class ToyObjective(nn.Module):
    """Two adapted layers between frozen ones; item losses are cross entropies."""

    def __init__(self, adapter: AdapterConfig) -> None:
        super().__init__()
        torch.manual_seed(11)
        layers = nn.Sequential(nn.Linear(INPUTS, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, CLASSES))
        self.model = attach(layers, adapter, default_targets=["0", "2"])

    def forward(
        self, points: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> dict[str, Tensor]:
        logits = self.model(points).flatten(0, -2).float()
        labels = labels.flatten()
        counted = labels != -100
        items = counted.sum()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        accuracy = ((logits.argmax(-1) == labels) & counted).sum() / items
        return {"loss": loss / (items if num_items_in_batch is None else num_items_in_batch), "accuracy": accuracy}


def train_config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 0.02,
        "warmup_steps": 2,
        "precision": "float32",
        "save_every": 4,
        "log_every": 3,
        "trackers": [],
    }
    return TrainConfig(**(settings | changes))


def adapter_config(method: str, dropout: float, balance_coef: float | None = None) -> AdapterConfig:
    routed: dict[str, Any] = {"num_experts": 2, "top_k": 1, "balance_coef": balance_coef} if method == "goat" else {}
    return AdapterConfig(method=method, r=4, alpha=8, dropout=dropout, **routed)  # type: ignore[arg-type]


def train_toy(
    output: Path,
    *,
    method: str = "goat",
    dropout: float = 0.0,
    balance_coef: float | None = None,
    size: int = 29,
    num_workers: int = 0,
    resume: Resume = "auto",
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda objective: objective,
    options: Mapping[str, Any] | None = None,
    **changes: Any,
) -> tuple[TrainResult, nn.Module]:
    """Train the toy into `output`; gives the result and the trained objective.

    `wrap` is applied to the objective before training, to make it fail; `options` go to `fit`, `changes` to
    `train_config`.
    """
    recipe = ToyRecipe(train_config(**changes), adapter_config(method, dropout, balance_coef), str(output))
    run = RunDirectory.create(output, recipe, resume=resume)
    objective = wrap(ToyObjective(recipe.adapter))
    result = fit(
        objective,
        train_dataset=ToySamples(size),
        collate=collate,
        config=recipe.train,
        run=run,
        seed=recipe.seed,
        **(options or {}),
        num_workers=num_workers,
        evaluate=None if evaluate is None else lambda step: evaluate(objective),
    )
    return result, objective


def lines(output: Path) -> list[dict[str, Any]]:
    """The metrics file without what depends on the clock."""
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "samples_per_second"} for line in found]


def trained(objective: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in objective.named_parameters() if p.requires_grad}
