"""The router load of a training: every token of a step counted once, wherever it was computed."""

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from common.adapters import balance_and_load, build_config
from common.training import router_load
from common.training.order import EpochOrder
from tests.common.training.toy import ToyRecipe, ToySamples, train_config, train_toy

TOKENS = 3  # of a sample, each sent to top_k = 1 of 2 experts


def written(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "router_load.jsonl").read_text().splitlines()]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_every_token_of_the_steps_between_two_lines_is_counted_once(tmp_path: Path, accumulation: int) -> None:
    # 19 samples in batches of 8: the last batch of an epoch has 3, so that one of its 4 micro-batches is a filler
    train_toy(tmp_path, size=19, gradient_accumulation_steps=accumulation)
    order, last = EpochOrder(19, 8, ToyRecipe(train_config()).seed), 0
    # a micro-batch without any would pass for a filler, which is not counted
    assert (ToySamples(19).labels != -100).any(1).all(), "every sample has a supervised token"
    for line in written(tmp_path):
        expected = sum(len(order.batch(step)[1]) for step in range(last, line["step"])) * TOKENS
        assert {sum(counts) for counts in line["tokens"].values()} == {expected}
        assert all(isinstance(count, int) for counts in line["tokens"].values() for count in counts)
        last = line["step"]
    assert last == 9


def test_the_layers_are_named_without_what_peft_puts_before_them(tmp_path: Path) -> None:
    train_toy(tmp_path, max_steps=4)
    assert list(written(tmp_path)[0]["tokens"]) == ["model.0", "model.2"]


def test_the_metrics_hold_the_load_in_three_numbers(tmp_path: Path) -> None:
    train_toy(tmp_path, max_steps=4)
    for line, load in zip(metrics(tmp_path), written(tmp_path), strict=True):
        shares = [count / sum(counts) for counts in load["tokens"].values() for count in counts]
        assert (line["router_load_max"], line["router_load_min"]) == pytest.approx((max(shares), min(shares)))
        assert 0 <= line["router_load_entropy"] <= 1


def test_entropy_is_one_when_balanced_and_zero_when_collapsed() -> None:
    assert router_load.summary({"a": [5, 5, 5, 5]})["router_load_entropy"] == pytest.approx(1)
    assert router_load.summary({"a": [20, 0, 0, 0]})["router_load_entropy"] == 0
    halved = router_load.summary({"a": [5, 5, 0, 0], "b": [5, 5, 5, 5], "unused": [0, 0, 0, 0]})
    assert halved["router_load_entropy"] == pytest.approx((math.log(2) / math.log(4) + 1) / 2)


def test_a_method_without_a_router_logs_none(tmp_path: Path) -> None:
    train_toy(tmp_path, method="moslora", max_steps=4)
    assert not (tmp_path / "router_load.jsonl").exists()
    assert not any(key.startswith("router_load") for line in metrics(tmp_path) for key in line)


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


@pytest.mark.parametrize("method", ["goat", "molora", "hydralora", "adamole", "full_moe"])
def test_what_checkpointing_computes_again_is_not_counted_again(method: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_experts": 4}
    config = build_config(method, r=4, target_modules=["0", "2"], **options)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)), config)
    x = torch.randn(10, 8)
    counts = []
    for net in (model, Checkpointed(model)):
        y = net.train()(x)
        balance, load = balance_and_load(net)
        (y.sum() + balance).backward()
        after = balance_and_load(net)[1]  # the recomputation of the backward has happened now
        assert list(after) == list(load)
        assert all(torch.equal(after[names], load[names]) for names in load)
        counts.append(torch.cat(list(load.values())))
    assert torch.equal(counts[0], counts[1])
    if method in ("goat", "molora", "full_moe"):
        assert (counts[0].sum(-1) == 10 * 2).all()  # every token twice, top_k = 2
