"""`fit` in one process: the trajectory, resuming, and what ends a run."""

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter  # noqa: F401  imported before the limits on file size below

from common.errors import UserError
from common.training import RunDirectory, Terminated, fit
from common.training.checkpoint import whole_checkpoints
from common.training.order import EpochOrder
from tests.common.training.scenarios import kill_at_forward
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

# Sums over a batch are taken in another order: a few roundings of float32 (6e-8) per step, amplified by AdamW,
# which divides small gradients by their own size.
ROUNDING = 2e-6


def assert_same_weights(one: nn.Module, other: nn.Module, atol: float = 0.0) -> None:
    expected = trained(other)
    for name, value in trained(one).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=atol, msg=name)


def assert_close_lines(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-5, abs=ROUNDING)


def breaking(number: int, harm: Callable[[nn.Module], None]) -> Callable[[nn.Module], nn.Module]:
    """A `wrap` that calls `harm(objective)` before the given forward."""
    count = 0

    def hook(module: nn.Module, _inputs: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            harm(module)

    def wrap(objective: nn.Module) -> nn.Module:
        objective.register_forward_pre_hook(hook)
        return objective

    return wrap


def steps_saved(output: Path) -> list[str]:
    return [path.name for path in whole_checkpoints(output / "checkpoints")]


def test_training_is_the_plain_loop_that_one_would_write(tmp_path: Path) -> None:
    result, objective = train_toy(tmp_path, method="lora", schedule="linear", weight_decay=0.1, max_grad_norm=0.05)

    plain = ToyObjective(adapter_config("lora", 0.0))
    samples, order = ToySamples(29), EpochOrder(29, 8, ToyRecipe(train_config()).seed)
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=0.02, weight_decay=0.1)
    losses = []
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (step / 2 if step < 2 else (12 - step) / 10)
        epoch, indices = order.batch(step)
        loss = plain(**collate([samples[(epoch, i)] for i in indices]))["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    assert_same_weights(objective, plain, atol=ROUNDING)
    assert result.steps == 12
    assert result.samples == 87
    assert result.metrics["train_loss"] == pytest.approx(sum(losses) / 12, abs=ROUNDING)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [1, 3, 6, 9, 12]
    means = [losses[0], *(sum(losses[a:b]) / (b - a) for a, b in [(1, 3), (3, 6), (6, 9), (9, 12)])]
    assert [line["loss"] for line in found] == pytest.approx(means, abs=ROUNDING)


@pytest.mark.parametrize(("method", "accumulation"), [("moslora", 2), ("goat", 8)])
def test_accumulation_changes_nothing(tmp_path: Path, method: str, accumulation: int) -> None:
    # The balance loss is a product of means over a micro-batch, so it alone depends on how a batch is divided.
    # 25 samples: the last batch of an epoch holds one, so with 8 micro-batches 7 are fillers.
    settings: dict[str, Any] = {"method": method, "balance_coef": 0.0, "size": 25}
    _, whole = train_toy(tmp_path / "whole", **settings)
    _, parts = train_toy(tmp_path / "parts", gradient_accumulation_steps=accumulation, **settings)
    assert_same_weights(parts, whole, atol=ROUNDING)
    assert_close_lines(lines(tmp_path / "parts"), lines(tmp_path / "whole"))


def test_the_balance_loss_is_part_of_the_loss(tmp_path: Path) -> None:
    train_toy(tmp_path / "with", balance_coef=0.5)
    train_toy(tmp_path / "without", balance_coef=0.0)
    with_loss, without = lines(tmp_path / "with")[0], lines(tmp_path / "without")[0]
    assert with_loss["balance_loss"] >= 2 * 0.5  # two layers, each at least 1 · coefficient
    assert with_loss["loss"] - without["loss"] == pytest.approx(with_loss["balance_loss"], abs=ROUNDING)


def test_evaluation_leaves_no_trace(tmp_path: Path) -> None:
    measured = []

    def evaluate(objective: nn.Module) -> dict[str, float]:
        objective.eval()
        measured.append(torch.rand(7).sum().item())
        return {"accuracy": 0.25}

    settings: dict[str, Any] = {"dropout": 0.3}
    _, undisturbed = train_toy(tmp_path / "without", **settings)
    result, objective = train_toy(tmp_path / "with", evaluate=evaluate, evaluate_every=5, **settings)
    assert_same_weights(objective, undisturbed)
    found = lines(tmp_path / "with")
    assert [line for line in found if "loss" in line] == lines(tmp_path / "without")
    assert [line["step"] for line in found if "eval_accuracy" in line] == [5, 10, 12]
    assert result.metrics["eval_accuracy"] == 0.25
    assert len(measured) == 3
    assert objective.training


def test_a_checkpoint_holds_what_is_trained_and_not_the_base(tmp_path: Path) -> None:
    _, objective = train_toy(tmp_path, keep_checkpoints=1)
    assert steps_saved(tmp_path) == ["step-00000012"]
    saved = safetensors.torch.load_file(tmp_path / "checkpoints" / "step-00000012" / "trained.safetensors")
    assert trained(objective).keys() < saved.keys()
    assert any("mosgoat_A0" in name for name in saved)
    assert not any("base_layer" in name for name in saved)
    frozen = ToyObjective(adapter_config("goat", 0.0)).state_dict()
    for name, value in objective.state_dict().items():
        if name not in trained(objective):
            assert torch.equal(value, frozen[name]), name


def test_sigterm_saves_and_the_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"dropout": 0.3, "method": "moslora", "trackers": ["tensorboard"]}
    whole, expected = train_toy(tmp_path / "whole", **settings)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as stopped:
        train_toy(tmp_path / "run", wrap=kill_at_forward(7, signal.SIGTERM), **settings)
    assert stopped.value.code == 143
    assert "step 7 of 12" in stopped.value.message
    assert signal.getsignal(signal.SIGTERM) is before
    assert steps_saved(tmp_path / "run") == ["step-00000004", "step-00000007"]
    result, objective = train_toy(tmp_path / "run", resume="must", **settings)
    assert_same_weights(objective, expected)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert result.metrics["train_loss"] == whole.metrics["train_loss"]
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_too_little_memory_says_what_to_lower(tmp_path: Path) -> None:
    def full(_module: nn.Module, _inputs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def wrap(objective: nn.Module) -> nn.Module:
        objective.register_forward_pre_hook(full)
        return objective

    with pytest.raises(UserError, match=r"out of memory after step 0 of 12, .* raise train\.gradient_accum"):
        train_toy(tmp_path, wrap=wrap)


def test_a_run_killed_before_its_results_is_not_trained_again(tmp_path: Path) -> None:
    first, objective = train_toy(tmp_path, evaluate=lambda _: {"accuracy": 0.5})
    again, loaded = train_toy(tmp_path, wrap=kill_at_forward(1))
    assert_same_weights(loaded, objective)
    same = {"train_loss", "samples_per_second", "eval_accuracy"}
    assert {name: again.metrics[name] for name in same} == {name: first.metrics[name] for name in same}
    assert again.steps == 12


def test_without_checkpoints_nothing_is_saved(tmp_path: Path) -> None:
    train_toy(tmp_path, save_every=0)
    assert steps_saved(tmp_path) == []


@pytest.mark.parametrize("log_every", [1, 100], ids=["seen in the log", "seen before a save"])
def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_checkpoint(tmp_path: Path, log_every: int) -> None:
    def poison(objective: nn.Module) -> None:
        next(p for p in objective.parameters() if p.requires_grad).data.fill_(float("nan"))

    with pytest.raises(UserError, match=r"loss is not finite .* at step 6 of 12; .*step-00000004.*learning_rate"):
        train_toy(tmp_path, wrap=breaking(6, poison), log_every=log_every)
    assert steps_saved(tmp_path) == ["step-00000004"]
    assert all(line["step"] < 6 for line in lines(tmp_path))


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    def explode(objective: nn.Module) -> None:
        next(p for p in objective.parameters() if p.requires_grad).register_hook(lambda grad: grad * float("inf"))

    with pytest.raises(UserError, match=r"a trained weight is not finite .* at step 8 of 12"):
        train_toy(tmp_path, wrap=breaking(8, explode), log_every=100)
    assert steps_saved(tmp_path) == ["step-00000004"]


class _Wide(nn.Module):
    """The toy beside a large weight, so that its checkpoint is larger than a limit on the size of files."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective
        self.ballast = nn.Parameter(torch.zeros(100_000))  # 400 kB, and 800 kB in the optimizer

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        outputs = self.objective(**batch)
        return {**outputs, "loss": outputs["loss"] + self.ballast.square().sum()}


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Let writes beyond `size` bytes of a file fail, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [300_000, 600_000], ids=["weights", "optimizer"])
def test_a_full_disk_ends_the_run_with_a_reason_and_keeps_the_last_checkpoint(tmp_path: Path, limit: int) -> None:
    fill = files_at_most(limit)

    def wrap(objective: nn.Module) -> nn.Module:
        return breaking(6, lambda _: fill.__enter__())(_Wide(objective))

    try:
        with pytest.raises(UserError, match=r"checkpoint of step 8 could not be written: .*step-00000004\. Free"):
            train_toy(tmp_path, wrap=wrap)
    finally:
        fill.__exit__(None, None, None)
    assert steps_saved(tmp_path) == ["step-00000004"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    train_toy(tmp_path, wrap=_Wide)
    assert steps_saved(tmp_path) == ["step-00000008", "step-00000012"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Terminated):
        train_toy(tmp_path, wrap=kill_at_forward(5, signal.SIGTERM))
    with pytest.raises(UserError, match=r"another model or adapter:\n  - ballast is missing from the checkpoint"):
        train_toy(tmp_path, wrap=_Wide)


def test_bf16_trains_float32_weights_and_gives_the_objective_back_as_it_was(tmp_path: Path) -> None:
    _, objective = train_toy(tmp_path / "bf16", precision="bf16", method="lora")
    train_toy(tmp_path / "float32", method="lora")
    assert all(value.dtype == torch.float32 for value in trained(objective).values())
    assert "forward" not in vars(objective)
    # bf16 keeps 8 bits: a loss of 1.6 is right to about 1e-2.
    assert lines(tmp_path / "bf16")[-1]["loss"] == pytest.approx(lines(tmp_path / "float32")[-1]["loss"], abs=1e-2)
    assert lines(tmp_path / "bf16")[-1]["loss"] != lines(tmp_path / "float32")[-1]["loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": None}, "give train.epochs or train.max_steps"),
        ({"warmup_steps": 12}, "train.warmup_steps=12 must be less than the 12 steps"),
        ({"gradient_accumulation_steps": 3}, r"use a batch size of 6 or 9, or 1 or 2 or 4 accumulation steps"),
        ({"trackers": ["tensorbord"]}, "'tensorbord' is unknown; did you mean tensorboard"),
        ({"trackers": ["comet_ml"]}, "comet_ml cannot be used"),
    ],
)
def test_impossible_settings_are_refused_with_what_would_work(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_toy(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "steps"), [({"epochs": 0.5}, 2), ({"epochs": 1.1}, 5), ({"max_steps": 3}, 3), ({"epochs": 0.01}, 1)]
)
def test_epochs_may_be_fractions_and_max_steps_wins(tmp_path: Path, changes: dict, steps: int) -> None:
    result, _ = train_toy(tmp_path, warmup_steps=0, save_every=0, **changes)
    assert result.steps == steps


def test_an_objective_without_trained_weights_is_refused(tmp_path: Path) -> None:
    recipe = ToyRecipe(train_config())
    run = RunDirectory.create(tmp_path, recipe, resume="auto")
    with pytest.raises(UserError, match="nothing is trained"):
        fit(
            ToyObjective(recipe.adapter).requires_grad_(False),
            train_dataset=ToySamples(9),
            collate=collate,
            config=recipe.train,
            run=run,
            seed=0,
            num_workers=0,
        )


def test_a_step_without_supervised_items_has_loss_zero(tmp_path: Path) -> None:
    samples = ToySamples(8)
    samples.labels.fill_(-100)
    recipe = ToyRecipe(train_config(epochs=1, warmup_steps=0, weight_decay=0.0), adapter_config("goat", 0.0))
    run = RunDirectory.create(tmp_path, recipe, resume="auto")
    objective = ToyObjective(recipe.adapter)
    fit(objective, train_dataset=samples, collate=collate, config=recipe.train, run=run, seed=0, num_workers=0)
    assert lines(tmp_path)[0]["loss"] == 0
    assert_same_weights(objective, ToyObjective(recipe.adapter))


def test_no_line_of_the_metrics_is_more_than_json(tmp_path: Path) -> None:
    train_toy(tmp_path, log_every=1)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line, parse_constant=lambda name: pytest.fail(name))
        assert {"step", "epoch", "loss", "accuracy", "learning_rate", "grad_norm", "samples_per_second"} <= set(values)
    assert os.listdir(tmp_path / "checkpoints")
