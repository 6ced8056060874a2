"""What a pipeline may ask of `fit` beside the plain run: own learning rates, another mean, groups, counts."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.training.order import EpochOrder, Grouping
from tests.common.training.toy import (
    ToyObjective,
    ToyRecipe,
    ToySamples,
    adapter_config,
    collate,
    lines,
    train_config,
    train_toy,
    trained,
)

ROUNDING = 2e-6  # float32 sums in another order, see test_fit.py


class Counting(nn.Module):
    """The toy objective, counting its points."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, points: Tensor, **batch: Any) -> dict[str, Any]:
        outputs = self.objective(points=points, **batch)
        return {**outputs, "counts": {"points": torch.tensor(points.shape[0] * points.shape[1])}}


def by_hand(rates: dict[str, float], accumulation: int) -> nn.Module:
    """Nine steps of the toy with a micro-batch mean and two learning rates, as one would write them."""
    plain = ToyObjective(adapter_config("lora", 0.0))
    samples, order = ToySamples(32), EpochOrder(32, 8, ToyRecipe(train_config()).seed)
    named = [(name, p) for name, p in plain.named_parameters() if p.requires_grad]
    special = [p for name, p in named if any(part in name for part in rates)]
    other = [p for name, p in named if not any(part in name for part in rates)]
    groups = [{"params": other, "lr": 0.02}, {"params": special, "lr": next(iter(rates.values()), 0.02)}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(9):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * min(step / 2, 1)
        epoch, indices = order.batch(step)
        for part in np.array_split(np.array(indices), accumulation):
            (plain(**collate([samples[(epoch, int(i))] for i in part]))["loss"] / accumulation).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return plain


@pytest.mark.parametrize("rates", [{}, {"2.lora_B": 0.1}])
def test_micro_batch_mean_and_learning_rates_are_those_of_the_plain_loop(
    tmp_path: Path, rates: dict[str, float]
) -> None:
    _, objective = train_toy(
        tmp_path, method="lora", size=32, max_steps=9, epochs=None, schedule="constant",
        gradient_accumulation_steps=4, options={"loss_mean": "micro_batch", "learning_rates": rates},
    )  # fmt: skip
    expected = trained(by_hand(rates, 4))
    for name, value in trained(objective).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=ROUNDING, msg=name)


def test_a_micro_batch_mean_goes_on_only_with_as_many_micro_batches(tmp_path: Path) -> None:
    mean = {"loss_mean": "micro_batch"}
    whole = {"method": "lora", "size": 32, "max_steps": 4, "epochs": None, "save_every": 2}
    train_toy(tmp_path, gradient_accumulation_steps=4, options=mean, **whole)
    (tmp_path / "results.json").unlink(missing_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000004")
    with pytest.raises(UserError, match=r"4 micro-batches in a step.*gradient_accumulation_steps=2 x 1.*_steps=4"):
        train_toy(tmp_path, gradient_accumulation_steps=2, options=mean, **whole)
    train_toy(tmp_path, gradient_accumulation_steps=4, options=mean, **whole)


def test_a_learning_rate_for_no_parameter_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="projector"):
        train_toy(tmp_path, options={"learning_rates": {"projector": 1e-3}})


def test_counts_are_summed_and_survive_a_kill(tmp_path: Path) -> None:
    result, _ = train_toy(tmp_path / "whole", wrap=Counting, gradient_accumulation_steps=2)
    assert result.metrics["total_points"] == 3 * 29 * 3  # epochs x samples x points of a sample
    assert result.metrics["points_per_second"] == pytest.approx(3 * result.metrics["samples_per_second"])
    assert all("points_per_second" in line for line in lines(tmp_path / "whole"))

    class Stop(Exception):
        pass

    def stop_at_ninth(objective: nn.Module) -> nn.Module:
        counting, calls = Counting(objective), []

        def hook(*_: Any) -> None:
            calls.append(1)
            if len(calls) == 15:
                raise Stop

        counting.register_forward_pre_hook(hook)
        return counting

    with pytest.raises(Stop):
        train_toy(tmp_path / "cut", wrap=stop_at_ninth, gradient_accumulation_steps=2)
    resumed, _ = train_toy(tmp_path / "cut", wrap=Counting, gradient_accumulation_steps=2)
    assert resumed.metrics["total_points"] == result.metrics["total_points"]


def test_warm_up_may_be_a_share_of_the_steps(tmp_path: Path) -> None:
    train_toy(tmp_path, warmup_steps=0.3, log_every=1, schedule="constant")  # 12 steps: ceil(3.6) = 4
    rates = [line["learning_rate"] for line in lines(tmp_path)]
    assert rates == pytest.approx([0.0, 0.005, 0.01, 0.015, *[0.02] * 8])


def grouped_order(size: int, batch: int, classes: bool) -> tuple[EpochOrder, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    lengths, kinds = rng.integers(10, 2000, size), rng.integers(0, 2, size)
    return EpochOrder(size, batch, 7, Grouping(lengths, kinds if classes else None)), lengths, kinds


def test_grouped_batches_hold_every_sample_once_and_waste_little() -> None:
    order, lengths, _ = grouped_order(10_007, 16, classes=False)
    batches = [order.batch(step)[1] for step in range(order.steps_per_epoch)]
    assert sorted(i for batch in batches for i in batch) == list(range(10_007))
    assert len(batches[-1]) == 10_007 % 16
    real = sum(lengths[batch].sum() for batch in batches)
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    assert real / padded > 0.97
    other = [order.batch(order.steps_per_epoch + step)[1] for step in range(order.steps_per_epoch)]
    assert other != batches


def test_the_longest_sample_comes_first_and_only_in_the_first_epoch() -> None:
    order, lengths, _ = grouped_order(10_000, 16, classes=False)
    assert lengths[order.batch(0)[1]].max() == lengths.max()
    assert lengths[order.batch(order.steps_per_epoch)[1]].max() < lengths.max()


def test_classes_meet_only_where_one_ends() -> None:
    order, _, kinds = grouped_order(8_000, 16, classes=True)
    mixed = sum(0 < kinds[order.batch(step)[1]].sum() < 16 for step in range(order.steps_per_epoch))
    assert mixed <= -(-8_000 // (16 * 50))  # one a megabatch


def test_fewer_samples_than_a_batch_are_one_batch() -> None:
    order, _, _ = grouped_order(5, 16, classes=True)
    assert sorted(order.batch(0)[1]) == [0, 1, 2, 3, 4]
