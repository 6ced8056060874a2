"""Methods of which a part happens between steps, in the engine: their phases, and that interruptions change nothing."""

import functools
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.adapters import AdapterSchedule, auxiliary_loss
from common.adapters.files import load_adapter
from common.errors import UserError
from common.training import Terminated
from common.training.state import trained_state
from tests.common.training.scenarios import kill_at_forward
from tests.common.training.toy import ToyObjective, adapter_config, lines, train_toy

STEPS = 12  # of the toy's run; LoRA-Dash launches and AdaLoRA settles its ranks after the sixth


def tensors(objective: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trained_state(objective).items()}


SETTINGS: dict[str, Any] = {"dropout": 0.3, "log_every": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, nn.Module]]:
    """The uninterrupted run of a method: its folder and the trained objective."""

    @functools.cache
    def run(method: str) -> tuple[Path, nn.Module]:
        folder = tmp_path_factory.mktemp(method)
        return folder, train_toy(folder, method=method, **SETTINGS)[1]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adalora", "lora_dash"])
@pytest.mark.parametrize("last_step", [5, 6])
def test_an_interrupted_run_ends_as_the_whole_one_bit_by_bit(
    method: str, last_step: int, whole: Callable[[str], tuple[Path, nn.Module]], tmp_path: Path
) -> None:
    folder, expected = whole(method)
    with pytest.raises(Terminated):
        train_toy(tmp_path / "cut", wrap=kill_at_forward(last_step, signal.SIGTERM), method=method, **SETTINGS)
    _, found = train_toy(tmp_path / "cut", resume="must", method=method, **SETTINGS)
    assert lines(tmp_path / "cut") == lines(folder)
    wanted = tensors(expected)
    for name, value in tensors(found).items():
        assert torch.equal(value, wanted[name]), name
    for objective, place in ((expected, "one"), (found, "other")):
        objective.model.save_pretrained(tmp_path / place)
    files = [(tmp_path / place / "adapter_model.safetensors").read_bytes() for place in ("one", "other")]
    assert files[0] == files[1]


def test_a_run_killed_before_its_results_knows_adaloras_ranks(tmp_path: Path) -> None:
    _, objective = train_toy(tmp_path, method="adalora")
    _, loaded = train_toy(tmp_path, method="adalora", wrap=kill_at_forward(1))
    objective.model.save_pretrained(tmp_path / "one")
    loaded.model.save_pretrained(tmp_path / "other")
    files = [(tmp_path / place / "adapter_model.safetensors").read_bytes() for place in ("one", "other")]
    assert files[0] == files[1]


def test_adalora_ends_with_its_budget_of_ranks_and_loads_with_it(tmp_path: Path) -> None:
    _, objective = train_toy(tmp_path / "run", method="adalora")
    model = objective.model
    layers = [layer for layer in model.modules() if hasattr(layer, "kept_ranks")]
    kept = sum(int(layer.kept_ranks.sum()) for layer in layers)
    assert kept == 4 * len(layers)  # r = 4 on average; 6 in each layer at the start
    for layer in layers:
        singular_values = layer.lora_E["default"][:, 0]
        assert torch.equal(singular_values != 0, layer.kept_ranks)
    model.save_pretrained(tmp_path / "adapter")
    plain = ToyObjective(adapter_config("lora", 0.0)).model.unload()
    loaded = load_adapter(plain, tmp_path / "adapter").eval()
    assert sum(len(layer.lora_E["default"]) for layer in loaded.modules() if hasattr(layer, "lora_E")) == kept
    x = torch.randn(9, 12)
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=0, atol=1e-6)  # zeros left out of the sums


def test_lora_dash_is_plain_lora_before_its_launch_and_trains_its_directions_after_it(tmp_path: Path) -> None:
    seen: dict[int, list[torch.Tensor]] = {}

    def watch(objective: nn.Module) -> nn.Module:
        def hook(module: nn.Module, _inputs: object) -> None:
            layers = [layer for layer in module.modules() if hasattr(layer, "mosgoat_U")]
            step = len(seen) + 1
            seen[step] = [t["default"].detach().clone() for y in layers for t in (y.mosgoat_U, y.mosgoat_sigma)]

        objective.register_forward_pre_hook(hook)
        return objective

    train_toy(tmp_path / "run", method="lora_dash", wrap=watch)
    assert all(not tensor.any() for step in range(1, 7) for tensor in seen[step])
    directions, strengths = seen[7][0::2], seen[7][1::2]
    for u in directions:
        torch.testing.assert_close(u.T @ u, torch.eye(u.shape[1]), rtol=0, atol=1e-5)  # columns of a rotation
    assert not any(sigma.any() for sigma in strengths)
    assert all(sigma.all() for sigma in seen[8][1::2])
    assert all(torch.equal(seen[step][0], seen[7][0]) for step in range(8, STEPS + 1))


@pytest.mark.parametrize(
    ("method", "weights_loss"), [("adalora", True), ("kasa", True), ("lora", False), ("goat", False)]
)
def test_the_loss_of_the_weights_is_part_of_the_steps_loss(method: str, weights_loss: bool, tmp_path: Path) -> None:
    objective = ToyObjective(adapter_config(method, 0.0))
    AdapterSchedule(objective, STEPS)
    expected = auxiliary_loss(objective).item()
    # a learning rate of next to nothing: the first logged step has the start's loss
    train_toy(tmp_path / "one", method=method, log_every=1, learning_rate=1e-12)
    (first, *_) = lines(tmp_path / "one")
    assert ("auxiliary_loss" in first) == weights_loss == (expected > 0)
    if weights_loss:
        assert first["auxiliary_loss"] == pytest.approx(expected, rel=1e-5)
        train_toy(tmp_path / "two", method=method, log_every=1, learning_rate=1e-12, gradient_accumulation_steps=4)
        assert lines(tmp_path / "two")[0]["loss"] == pytest.approx(first["loss"], rel=1e-5)


def test_phases_that_do_not_fit_are_an_error() -> None:
    def objective(method: str, **settings: int) -> nn.Module:
        return ToyObjective(replace(adapter_config(method, 0.0), **settings))  # type: ignore[arg-type]

    cases: list[tuple[Callable[[], nn.Module], str]] = [
        (lambda: objective("adalora", tinit=5, tfinal=7), "tinit=5 and adapter.tfinal=7 leave no step of 12"),
        (lambda: objective("lora_dash", dash_steps=12), "dash_steps=12 must be less than the 12 steps"),
    ]
    for make, message in cases:
        with pytest.raises(UserError, match=message):
            AdapterSchedule(make(), STEPS)
    AdapterSchedule(objective("lora_dash", dash_steps=11), STEPS)
