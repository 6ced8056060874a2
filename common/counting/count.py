"""Counting what a method trains on a model: parameters, bytes, FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from common.adapters import METHODS, ParameterCount, attach
from common.config import AdapterConfig
from common.counting.flops import Flops, matched, model_flops
from common.counting.models import Architecture, PaperTotal, linear_layers
from common.errors import UserError
from common.words import did_you_mean

ADAMW_BYTES = 8  # of state for each trained parameter: two moments in float32


@dataclass(frozen=True)
class LayerGroup:
    """Adapted layers of one name and shape.

    Args:
        target: the name in the target list.
        in_features: width of their input.
        out_features: width of their output.
        layers: how many there are.
        trainable: trained parameters of all of them together.
    """

    target: str
    in_features: int
    out_features: int
    layers: int
    trainable: int


@dataclass(frozen=True)
class Count:
    """What one method takes on one model.

    Args:
        model: the architecture's name.
        method: a name in `METHODS`.
        r: total rank.
        targets: the adapted layers.
        trainable: trained parameters.
        base: parameters of the model without adapters.
        groups: the adapted layers by name and shape.
        adapter_bytes: of the tensors that are saved, in float32, frozen ones included.
        optimizer_bytes: AdamW's two moments in float32. The trained weights (float32) and their gradients come
            on top with 4 bytes each per parameter.
        paper: the denominator of the paper's percent column, where there is one.
        flops: None where the model takes other than text, pictures or latents.
    """

    model: str
    method: str
    r: int
    targets: tuple[str, ...]
    trainable: int
    base: int
    groups: tuple[LayerGroup, ...]
    adapter_bytes: int
    optimizer_bytes: int
    paper: PaperTotal | None
    flops: Flops | None

    @property
    def ranked(self) -> bool:
        """Whether the rank has an effect."""
        return METHODS[self.method].ranked

    @property
    def percent(self) -> str:
        """Trained parameters in percent of the model's without adapters, two decimals cut off."""
        return ParameterCount(self.trainable, self.base).percent

    @property
    def paper_percent(self) -> str | None:
        """The same by the paper's denominator, as its table prints it; all of the model is 100 there too."""
        if self.paper is None or self.method == "full":
            return None if self.paper is None else "100.00"
        return ParameterCount(self.trainable, self.paper.parameters).percent


def count(
    architecture: Architecture, adapter: AdapterConfig, *, tokens: int | None = None, with_flops: bool = True
) -> Count:
    """Count a method on a model; builds it on the meta device and reads shapes only.

    Args:
        architecture: from `find_model` or `MODELS`.
        adapter: the method and its settings, already checked by `adapter_problems`.
        tokens: length of a text for the FLOPs; None: 512, or less where the model allows no more.
        with_flops: whether to count FLOPs, which takes most of the time.

    Raises:
        UserError: a target that matches no layer or one that cannot be adapted; no targets for a model that has
            no default; a method that is no adapter of the model.
    """
    if adapter.method == "linear_probe":
        raise UserError("--method=linear_probe trains nothing of the model; its head depends on the data's classes")
    model = architecture.make()
    base = sum(parameter.numel() for parameter in model.parameters())
    targets = tuple(adapter.target_modules or architecture.targets)
    is_adapter = METHODS[adapter.method].build is not None
    if is_adapter:
        require_targets(architecture, model, targets)
        model = adapted(model, adapter, targets)
    else:
        model.requires_grad_(True)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    flops = None
    if with_flops and architecture.kind not in ("llava", "other"):
        flops = model_flops(architecture, adapter, targets, tokens)
    return Count(
        model=architecture.name,
        method=adapter.method,
        r=adapter.r,
        targets=targets if is_adapter else (),
        trainable=trainable,
        base=base,
        groups=_groups(model, targets) if is_adapter else (),
        adapter_bytes=_saved_bytes(model),
        optimizer_bytes=ADAMW_BYTES * trainable,
        paper=architecture.paper,
        flops=flops,
    )


def require_targets(architecture: Architecture, model: nn.Module, targets: Sequence[str]) -> None:
    """Raise `UserError` unless every target ends the name of a linear layer."""
    linear = linear_layers(model)
    known = sorted({_short(name) for name in linear})
    if not targets:
        raise UserError(f"--targets is needed for {architecture.title}; its linear layers: {', '.join(known)}")
    for target in targets:
        if not any(matched(name, [target]) for name in linear):
            raise UserError(
                f"--targets: {target!r} matches no linear layer of {architecture.name}; {did_you_mean(target, known)}"
            )


def adapted(model: nn.Module, adapter: AdapterConfig, targets: Sequence[str], **patterns: Any) -> PeftModel:
    """A model on the meta device with its adapter; `patterns` are settings of PEFT's configuration to change."""

    def change(config: PeftConfig) -> PeftConfig:
        for name, value in patterns.items():
            setattr(config, name, value)
        return config

    with torch.device("meta"):
        return attach(model, adapter, targets, change)


def _groups(model: nn.Module, targets: Sequence[str]) -> tuple[LayerGroup, ...]:
    found: dict[tuple[str, int, int], list[int]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            target = matched(name, targets)
            assert target is not None, name
            trained = sum(parameter.numel() for parameter in layer.parameters() if parameter.requires_grad)
            found.setdefault((target, base.in_features, base.out_features), []).append(trained)
    order = {target: place for place, target in enumerate(targets)}
    keys = sorted(found, key=lambda key: order[key[0]])
    return tuple(LayerGroup(*key, len(found[key]), sum(found[key])) for key in keys)


def _saved_bytes(model: nn.Module) -> int:
    if isinstance(model, PeftModel):
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    else:
        state = model.state_dict(keep_vars=True)
    tensors = {id(value): value for value in state.values()}  # a tied weight is saved once
    return sum(value.numel() * value.element_size() for value in tensors.values())


def _short(name: str) -> str:
    """The end of a layer's name from its last word on, so that `to_out.0` keeps its word."""
    parts = name.split(".")
    while len(parts) > 1 and parts[-1].isdigit():
        parts[-2:] = [f"{parts[-2]}.{parts[-1]}"]
        if not parts[-1].split(".")[0].isdigit():
            break
    return parts[-1]
