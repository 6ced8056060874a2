"""What methods do beside the gradient: AdaLoRA's ranks, LoRA-Dash's directions, and losses of the weights alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from common.adapters import adalora, dash
from common.adapters.layer import MosgoatLinear
from common.adapters.sharding import whole


class AdapterSchedule:
    """The part of a method that happens between optimizer steps; nothing for most of them.

    Make it before a checkpoint is loaded. All that it changes is in `adapter_tensors` and `schedule_tensors`; where a
    checkpoint holds both, `resume` goes on as if there had been no interruption.

    Args:
        model: any module with adapters below.
        total_steps: optimizer steps of the whole run.

    Raises:
        UserError: the method's phases do not fit into so many steps.
    """

    def __init__(self, model: nn.Module, total_steps: int) -> None:
        self._adalora = [module for module in model.modules() if adalora.is_trained_adalora(module)]
        adalora.require_tuners(model, self._adalora)
        for tuner in self._adalora:
            adalora.begin(tuner, total_steps)
        self._dash: dict[int, list[tuple[MosgoatLinear, str]]] = {}  # step -> the layers that launch after it
        for layer, adapter in _trained_layers(model):
            spec = layer.specs[adapter]
            if spec.num_directions:
                step = dash.launch_step(spec.dash_steps, total_steps)
                self._dash.setdefault(step, []).append((layer, adapter))
        self.has_loss = bool(self._adalora) or any(True for _ in _regularised(model))

    def before_step(self, step: int) -> None:
        """Keep back what is not trained yet; between the backward and the optimizer's step.

        Args:
            step: optimizer steps done, the coming one included.
        """
        for launch_step, layers in self._dash.items():
            if step <= launch_step:
                for layer, adapter in layers:
                    # its gradient is zero still, but AdamW would count these steps and then take the first ones
                    # with its gradient for a sudden rise: up to twice the learning rate
                    layer.mosgoat_sigma[adapter].grad = None

    def after_step(self, step: int) -> None:
        """Do what is due; between the optimizer's step and the clearing of the gradients.

        Args:
            step: optimizer steps done, this one included.
        """
        for tuner in self._adalora:
            adalora.after_step(tuner, step)
        if step in self._dash:
            dash.launch(self._dash[step])

    def resume(self, step: int) -> None:
        """Take note that a checkpoint of `step` was loaded."""
        for tuner in self._adalora:
            adalora.resume(tuner, step)


def schedule_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor, in place, of what schedules keep outside `model.state_dict()` and a checkpoint has to hold."""
    return adalora.progress(model)


def auxiliary_loss(model: nn.Module) -> Tensor:
    """The losses that depend on the weights alone, to be added once per step: of AdaLoRA (eq. 4) and KaSA (eq. 9-11).

    Args:
        model: any module with adapters below.

    Returns:
        0-dim float32, already times the coefficients; zero where the method has none.
    """
    parts = [adalora.orthogonality_loss(m) for m in model.modules() if adalora.is_trained_adalora(m)]
    found = [part for part in parts if part is not None]
    for layer, adapter in _regularised(model):
        spec = layer.specs[adapter]
        found.append(spec.singular_coef * whole(layer.mosgoat_mixer[adapter]).float().square().sum())
        factors = [layer.mosgoat_A[adapter], layer.mosgoat_B[adapter].T]
        found.append(spec.orthogonal_coef * adalora.deviation_from_orthogonal(factors))
    if found:
        return torch.stack([part.to(found[0].device) for part in found]).sum()
    parameter = next(model.parameters(), None)
    return torch.zeros((), device=None if parameter is None else parameter.device)


def _trained_layers(model: nn.Module) -> Iterator[tuple[MosgoatLinear, str]]:
    for layer in model.modules():
        if isinstance(layer, MosgoatLinear):
            for adapter in layer.active_adapters:
                if adapter in layer.specs and layer.mosgoat_B[adapter].requires_grad:
                    yield layer, adapter


def _regularised(model: nn.Module) -> Iterator[tuple[MosgoatLinear, str]]:
    for layer, adapter in _trained_layers(model):
        spec: Any = layer.specs[adapter]
        if spec.mixer == "diagonal" and (spec.singular_coef or spec.orthogonal_coef):
            yield layer, adapter
