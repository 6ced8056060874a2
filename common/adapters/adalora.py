"""AdaLoRA's budget schedule in our engine: PEFT's allocator, made to survive an interruption.

PEFT keeps the importance scores and the ranks that are left outside the model. Here they are buffers of the layers,
so that a checkpoint can hold them and a resumed run allocates the same ranks. They are no part of the state_dict, which
PEFT would save with the adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraLayer, AdaLoraModel
from torch import Tensor, nn

from common.adapters.sharding import whole
from common.errors import UserError

_FACTORS = "ABE"
_BUFFERS = (*(f"{kind}_{factor}" for kind in ("sensitivity", "uncertainty") for factor in _FACTORS), "kept_ranks")


@dataclass(frozen=True)
class AdaLoraSchedule:
    """What the user said about the schedule; None is worked out from the length of the run.

    Args:
        tinit: steps before ranks are taken away; none given: a tenth of the run.
        tfinal: last steps, in which the ranks stay as they are; none given: half of the run.
        delta_t: steps between two allocations; none given: a hundredth of the run, at most 10.
    """

    tinit: int | None = None
    tfinal: int | None = None
    delta_t: int | None = None

    def resolve(self, total_steps: int) -> tuple[int, int, int]:
        """`tinit`, `tfinal` and `delta_t` of a run of `total_steps`.

        Raises:
            UserError: no step is left between the first and the last ones.
        """
        tinit = total_steps // 10 if self.tinit is None else self.tinit
        tfinal = max(0, min(total_steps // 2, total_steps - 2)) if self.tfinal is None else self.tfinal
        delta_t = max(1, min(10, total_steps // 100)) if self.delta_t is None else self.delta_t
        if tinit + tfinal >= total_steps or tfinal > total_steps - 2:  # the first step scores, the second allocates
            raise UserError(
                f"adapter.tinit={tinit} and adapter.tfinal={tfinal} leave no step of {total_steps} in which AdaLoRA "
                "could take ranks away; choose smaller ones or train longer"
            )
        return tinit, tfinal, delta_t


def begin(tuner: AdaLoraModel, total_steps: int) -> None:
    """Set the schedule for a run and give the layers the buffers that a checkpoint keeps."""
    config = _config(tuner)
    schedule = getattr(config, "mosgoat_schedule", None) or AdaLoraSchedule(config.tinit, config.tfinal, config.deltaT)
    config.tinit, config.tfinal, config.deltaT = schedule.resolve(total_steps)
    config.total_step = total_steps
    config.rank_pattern = None
    tuner.rankallocator.reset_ipt()
    for _, layer in _layers(tuner):
        for factor in _FACTORS:
            weight = getattr(layer, f"lora_{factor}")[tuner.trainable_adapter_name]
            for kind in ("sensitivity", "uncertainty"):
                layer.register_buffer(f"{kind}_{factor}", torch.zeros_like(weight), persistent=False)
        # on a base in another dtype or place PEFT leaves this constant a trained parameter, and does not save it
        layer.ranknum[tuner.trainable_adapter_name].requires_grad_(False)
        weight = layer.lora_E[tuner.trainable_adapter_name]
        layer.register_buffer("kept_ranks", torch.ones_like(weight[:, 0], dtype=torch.bool), persistent=False)


def progress(module: nn.Module) -> dict[str, Tensor]:
    """Name -> buffer, in place, of all that `begin` has put on layers below `module`."""
    return {
        f"{name}.{buffer}" if name else buffer: layer.get_buffer(buffer)
        for name, layer in module.named_modules()
        if isinstance(layer, AdaLoraLayer) and hasattr(layer, "kept_ranks")
        for buffer in _BUFFERS
    }


def after_step(tuner: AdaLoraModel, step: int) -> None:
    """Score, and where it is due take ranks away; between the optimizer's step and the clearing of the gradients.

    Args:
        tuner: made ready by `begin`.
        step: optimizer steps done, this one included.
    """
    config, allocator = _config(tuner), tuner.rankallocator
    last = config.total_step - config.tfinal  # the step of the last allocation
    if step <= last:
        _hand_over(tuner)
    tuner.update_and_allocate(step)
    for name, layer in _layers(tuner):
        if step < last:
            for factor, key in _names(name, tuner):
                getattr(layer, f"sensitivity_{factor}").copy_(allocator.exp_avg_ipt[key])
                getattr(layer, f"uncertainty_{factor}").copy_(allocator.exp_avg_unc[key])
        elif step == last:
            kept = config.rank_pattern[f"{name}.lora_E.{tuner.trainable_adapter_name}"]
            layer.kept_ranks.copy_(torch.tensor(kept))
    if step == last and not any(layer.kept_ranks.any() for _, layer in _layers(tuner)):
        raise UserError(
            f"after {step} steps every rank of AdaLoRA has the same importance, so that none can be chosen; train "
            "longer, or with fewer adapter.tfinal steps"
        )
    if step < last:
        # PEFT would save only the ranks left now, although the others may still come back
        config.rank_pattern = None


def resume(tuner: AdaLoraModel, step: int) -> None:
    """After a checkpoint of `step` was loaded: let PEFT know which ranks are left, if that was settled."""
    config = _config(tuner)
    if step >= config.total_step - config.tfinal:
        adapter = tuner.trainable_adapter_name
        config.rank_pattern = {f"{n}.lora_E.{adapter}": layer.kept_ranks.tolist() for n, layer in _layers(tuner)}


def orthogonality_loss(tuner: AdaLoraModel) -> Tensor | None:
    """AdaLoRA eq. 4: the mean of ‖AAᵀ - I‖ and ‖BᵀB - I‖ over all layers, times its weight; None where that is 0."""
    weight = _config(tuner).orth_reg_weight
    adapter = tuner.trainable_adapter_name
    factors = [layer.lora_A[adapter] for _, layer in _layers(tuner)]
    factors += [layer.lora_B[adapter].T for _, layer in _layers(tuner)]
    return deviation_from_orthogonal(factors) * (weight / len(factors)) if weight and factors else None


def deviation_from_orthogonal(rows: list[Tensor]) -> Tensor:
    """Σ ‖P·Pᵀ - I‖ (Frobenius) over matrices P (r, n), in float32, 0-dim."""
    grams = [p @ p.T for p in (whole(p).float() for p in rows)]  # (r, r)
    return torch.stack([(g - torch.eye(g.shape[0], device=g.device)).norm().to(rows[0].device) for g in grams]).sum()


def _hand_over(tuner: AdaLoraModel) -> None:
    """Give PEFT's allocator the scores from the layers."""
    allocator = tuner.rankallocator
    for name, layer in _layers(tuner):
        for factor, key in _names(name, tuner):
            allocator.ipt.setdefault(key, torch.zeros(()))  # PEFT takes this for "seen before"; it sets it anew
            allocator.exp_avg_ipt[key] = getattr(layer, f"sensitivity_{factor}")
            allocator.exp_avg_unc[key] = getattr(layer, f"uncertainty_{factor}")


def _names(layer: str, tuner: AdaLoraModel) -> list[tuple[str, str]]:
    return [(factor, f"{layer}.lora_{factor}.{tuner.trainable_adapter_name}") for factor in _FACTORS]


def _config(tuner: AdaLoraModel) -> AdaLoraConfig:
    return tuner.peft_config[tuner.trainable_adapter_name]


def _layers(tuner: AdaLoraModel) -> Iterator[tuple[str, Any]]:
    """The adapted layers with their names in the base model."""
    for name, layer in tuner.model.named_modules():
        if isinstance(layer, AdaLoraLayer) and tuner.trainable_adapter_name in layer.lora_A:
            yield name, layer


def require_tuners(model: nn.Module, tuners: list[AdaLoraModel]) -> None:
    """Raise `UserError` if a layer of AdaLoRA is trained without PEFT's tuner, which holds the budget."""
    held = {id(layer) for tuner in tuners for _, layer in _layers(tuner)}
    for name, layer in model.named_modules():
        orphaned = isinstance(layer, AdaLoraLayer) and id(layer) not in held
        if orphaned and any(parameter.requires_grad for parameter in layer.lora_E.values()):
            raise UserError(
                f"layer {name} has a trained AdaLoRA whose tuner is gone, so that no rank would ever be taken away; "
                "put AdaLoRA on the model with peft.get_peft_model, not with add_adapter or inject_adapter_in_model"
            )


def is_trained_adalora(module: nn.Module) -> bool:
    """Whether `module` is PEFT's AdaLoRA tuner with an adapter that is trained."""
    return isinstance(module, AdaLoraModel) and hasattr(module, "trainable_adapter_name")
