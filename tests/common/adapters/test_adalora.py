"""AdaLoRA's allocation against an independent transcription of its paper, and its losses."""

import numpy as np
import peft
import pytest
import torch
from torch import nn

from common.adapters import AdapterSchedule, auxiliary_loss, build_config, schedule_tensors
from common.adapters.adalora import AdaLoraSchedule
from common.errors import UserError
from tests.common.adapters.tiny_models import Mlp

BETA = 0.85
STEPS = 20


def adapted(**overrides: object) -> nn.Module:
    torch.manual_seed(1)
    config = build_config("adalora", r=4, target_modules=["fc1", "fc2"], **overrides)
    return peft.get_peft_model(Mlp(), config)


def train(model: nn.Module, schedule: AdapterSchedule, steps: int, record: list | None = None) -> None:
    generator = torch.Generator().manual_seed(7)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    target = torch.randn(5, 20, generator=generator)
    for step in range(1, steps + 1):
        loss = (model(torch.randn(5, 24, generator=generator)) - target).square().mean()
        (loss + auxiliary_loss(model)).backward()
        optimizer.step()
        if record is not None:
            trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
            record.append({n: (p.detach().double().numpy(), p.grad.double().numpy()) for n, p in trained.items()})
            record[-1] = {n: (p.copy(), g.copy()) for n, (p, g) in record[-1].items()}
        schedule.after_step(step)
        optimizer.zero_grad()


def importance(record: list, layer: str) -> np.ndarray:
    """Eq. 8-12 of the paper for every triplet of a layer: the score of σ plus the mean scores of its two vectors."""
    scores = {}
    for factor in "ABE":
        smooth = uncertain = 0.0
        for step in record:
            p, g = next(value for name, value in step.items() if f"{layer}.lora_{factor}" in name)
            sensitivity = np.abs(p * g)
            smooth = BETA * smooth + (1 - BETA) * sensitivity
            uncertain = BETA * uncertain + (1 - BETA) * np.abs(sensitivity - smooth)
        scores[factor] = smooth * uncertain
    return scores["E"][:, 0] + scores["A"].mean(1) + scores["B"].mean(0)


def test_the_ranks_that_stay_are_those_of_the_papers_importance() -> None:
    model = adapted(tinit=3, tfinal=8, delta_t=100)  # one allocation, after step 12
    record: list = []
    train(model, AdapterSchedule(model, STEPS), STEPS, record)
    scores = {layer: importance(record[:11], layer) for layer in ("fc1", "fc2")}
    everything = np.sort(np.concatenate(list(scores.values())))
    threshold = everything[-8]  # 4 · 2 of the 6 · 2 ranks stay
    for name, layer in model.base_model.model.named_children():
        if name in scores:
            assert layer.kept_ranks.tolist() == (scores[name] >= threshold).tolist()
            assert torch.equal(layer.lora_E["default"][:, 0] != 0, layer.kept_ranks)


def test_the_budget_shrinks_by_a_cubic_law_and_reaches_its_target() -> None:
    model = adapted(tinit=2, tfinal=6, delta_t=1)
    schedule = AdapterSchedule(model, STEPS)
    left = []
    after = schedule.after_step

    def noting(step: int) -> None:
        after(step)
        layers = (model.base_model.model.fc1, model.base_model.model.fc2)
        left.append(sum(int((layer.lora_E["default"] != 0).sum()) for layer in layers))

    schedule.after_step = noting  # type: ignore[method-assign]
    train(model, schedule, STEPS)
    budget = [12 if step <= 2 else int((12 - 8) * (1 - (step - 2) / 12) ** 3 + 8) for step in range(1, 15)]
    assert left == [*budget, *[8] * 6]


def test_saving_before_the_last_allocation_keeps_every_rank() -> None:
    model = adapted(tinit=1, tfinal=6, delta_t=1)
    train(model, AdapterSchedule(model, STEPS), 9)
    assert model.peft_config["default"].rank_pattern is None
    assert all(len(value) == 6 for name, value in peft.get_peft_model_state_dict(model).items() if "lora_E" in name)


def test_a_second_run_of_the_same_model_begins_anew() -> None:
    model = adapted()
    train(model, AdapterSchedule(model, STEPS), STEPS)
    assert model.peft_config["default"].rank_pattern is not None
    AdapterSchedule(model, STEPS)
    assert model.peft_config["default"].rank_pattern is None
    assert model.base_model.model.fc1.kept_ranks.all()


def test_what_is_not_given_follows_from_the_length_of_the_run() -> None:
    assert AdaLoraSchedule().resolve(2000) == (200, 1000, 10)
    assert AdaLoraSchedule().resolve(300) == (30, 150, 3)
    assert AdaLoraSchedule().resolve(2) == (0, 0, 1)
    assert AdaLoraSchedule(tinit=5, tfinal=0, delta_t=7).resolve(100) == (5, 0, 7)
    model = adapted(tinit=4)
    AdapterSchedule(model, 200)
    config = model.peft_config["default"]
    assert (config.total_step, config.tinit, config.tfinal, config.deltaT) == (200, 4, 100, 2)


@pytest.mark.parametrize(("schedule", "steps"), [((), 1), ((50, 50), 100), ((0, 99), 100)])
def test_a_run_without_a_step_to_allocate_in_is_an_error(schedule: tuple[int, ...], steps: int) -> None:
    with pytest.raises(UserError, match=f"leave no step of {steps}"):
        AdaLoraSchedule(*schedule).resolve(steps)


def test_scores_that_tell_nothing_apart_are_an_error_and_not_an_empty_adapter() -> None:
    model = adapted()
    schedule = AdapterSchedule(model, 2)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    schedule.after_step(1)
    with pytest.raises(UserError, match="after 2 steps every rank of AdaLoRA has the same importance"):
        schedule.after_step(2)


def test_the_loss_is_the_mean_distance_of_the_factors_from_orthogonal_ones() -> None:
    model = adapted(orthogonal_coef=0.3)
    found = auxiliary_loss(model)
    distances = []
    for name, parameter in model.named_parameters():
        p = parameter.detach().double().numpy()
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            distances.append(np.sqrt(np.square(gram - np.eye(len(gram))).sum()))
    assert found.item() == pytest.approx(0.3 * np.mean(distances), rel=1e-6)
    found.backward()
    assert all((p.grad is not None) == ("lora_E" not in n) for n, p in model.named_parameters() if p.requires_grad)
    assert auxiliary_loss(adapted(orthogonal_coef=0.0)).item() == 0


def test_what_the_schedule_keeps_is_not_saved_with_the_adapter() -> None:
    model = adapted()
    names = set(peft.get_peft_model_state_dict(model))
    AdapterSchedule(model, STEPS)
    assert set(peft.get_peft_model_state_dict(model)) == names
    assert len(schedule_tensors(model)) == 2 * 7


def test_an_adapter_without_its_tuner_is_an_error_and_not_a_lora_of_too_high_a_rank() -> None:
    config = build_config("adalora", r=4, target_modules=["fc1"])
    model = peft.inject_adapter_in_model(config, Mlp())
    with pytest.raises(UserError, match="layer fc1 has a trained AdaLoRA whose tuner is gone"):
        AdapterSchedule(model, STEPS)
