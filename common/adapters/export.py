"""Turn an adapter into a plain LoRA, the form that every tool opens."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import AdaLoraConfig, LoraConfig, PeftConfig, get_peft_model_state_dict
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from common.errors import UserError
from common.weights import write_tensors

_BASE = "base_model.model."
# Starts of PEFT's LoRA that change the base weights, to which a bare A and B would then not belong.
_STARTS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class PlainLora:
    """An adapter of one linear layer as a plain LoRA: the update is scaling · B · A.

    Args:
        a: A (r, in), float32 or wider, detached.
        b: B (out, r), likewise.
        scaling: as trained.
        magnitude: (out,) of DoRA, whose update is magnitude · (W0 + scaling·B·A) / row norms - W0; None otherwise.
    """

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """The number of A's rows."""
        return self.a.shape[0]


def plain_layers(model: nn.Module, adapter: str = "default") -> dict[str, PlainLora]:
    """Every layer of an adapter as a plain LoRA.

    Args:
        model: a `PeftModel`, or a model into which PEFT, diffusers or transformers has injected the adapter.
        adapter: which adapter.

    Returns:
        Name of the layer in the base model -> A' = M·A, B' = B, s; with a residual branch A' = [A; A0] and
        B' = [B, -mean_mixing·B0], of twice the rank.

    Raises:
        UserError: for an adapter that is no LoRA, with the reason and what to do instead.
    """
    config = config_of(model, adapter)
    require_exportable(config, adapter)
    found = {}
    for full_name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer) and _holds(layer, adapter):
            found[full_name.removeprefix(_BASE)] = _plain(full_name, layer, adapter, config)
    return found


def config_of(model: nn.Module, adapter: str) -> PeftConfig:
    """The configuration of an adapter of `model`; raises `UserError` if it has none of this name."""
    configs: Mapping[str, PeftConfig] = getattr(model, "peft_config", None) or {}
    if adapter not in configs:
        there = f"it has {', '.join(configs)}" if configs else "it has none"
        raise UserError(f"the {type(model).__name__} has no adapter {adapter!r}; {there}")
    return configs[adapter]


def require_exportable(config: PeftConfig, adapter: str = "default") -> None:
    """Raise `UserError` for a configuration that is no LoRA, with the reason and what to do instead.

    A routed adapter of ours passes here; its layers refuse.
    """
    if isinstance(config, LoraConfig):
        start = config.init_lora_weights
        if isinstance(start, str) and start.lower().startswith(_STARTS_THAT_CHANGE_THE_BASE):
            raise UserError(
                f"adapter {adapter!r} was started by PEFT with init_lora_weights={start!r}, which changes the base "
                "weights, so that A and B alone are not the adapter. Keep it as an adapter in PEFT's format, or train "
                "method=pissa of this suite, which leaves the base as it is"
            )
        return
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind == "MOSGOAT":
        return
    if getattr(config, "routed", False):
        raise UserError(
            f"adapter {adapter!r} routes every token to experts that are whole layers, so no single weight equals it: "
            "it cannot be merged into the base model or exported as a plain LoRA; keep it as an adapter, or train "
            "moslora or lora instead"
        )
    raise UserError(
        f"adapter {adapter!r} is of PEFT's type {kind}, which is no LoRA: its update is not a product of two narrow "
        "matrices. Keep it as an adapter in PEFT's format, which stock PEFT opens, or write the merged model "
        "(--to merged)"
    )


def export_lora(model: nn.Module, directory: str | Path, adapter: str = "default") -> None:
    """Write an adapter as a plain LoRA in PEFT's format: A' = M·A, B' = B, the same scaling, nothing lost.

    A residual branch makes the rank twice as large: A' = [A; A0], B' = [B, -mean_mixing·B0].

    Args:
        model: the model with the adapter, a `PeftModel` or one with an injected adapter.
        directory: where `adapter_config.json` and `adapter_model.safetensors` are written.
        adapter: which adapter.

    Raises:
        UserError: for a routed adapter, or one of another kind.
    """
    config, directory = config_of(model, adapter), Path(directory)
    require_exportable(config, adapter)
    # embeddings are never trained here; PEFT would save them for an adapter on the output head, and ask the Hub
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    prefix = "" if any(name.startswith(_BASE) for name in state) else _BASE  # injected: names of the base model
    if isinstance(config, LoraConfig) and not isinstance(config, AdaLoraConfig):
        weights = {prefix + name: _saved(value) for name, value in state.items()}
        written: LoraConfig = config
    else:
        layers = plain_layers(model, adapter)
        weights = _peft_weights(layers)
        own = tuple(f"{_BASE}{name}." for name in layers)
        for name, value in state.items():
            if not (prefix + name).startswith(own):
                weights[prefix + name] = _saved(value)  # modules_to_save
        written = _lora_config(config, layers)
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / "adapter_model.safetensors", weights)
    written = copy.copy(written)
    written.inference_mode = True
    written.save_pretrained(str(directory))


def _holds(layer: Any, adapter: str) -> bool:
    return any(adapter in (getattr(layer, name, None) or ()) for name in layer.adapter_layer_names)


def _plain(name: str, layer: Any, adapter: str, config: PeftConfig) -> PlainLora:
    if hasattr(layer, "plain_factors"):  # ours
        return PlainLora(*layer.plain_factors(adapter))
    if isinstance(layer, LoraLayer) and adapter in layer.lora_A and isinstance(layer.get_base_layer(), nn.Linear):
        if isinstance(layer, AdaLoraLayer):
            scaling = layer.scaling[adapter] / (layer.ranknum[adapter].item() + 1e-5)  # as PEFT's forward has it
            return PlainLora(
                (layer.lora_A[adapter] * layer.lora_E[adapter]).detach().float(),
                layer.lora_B[adapter].detach().float(),
                scaling,
            )
        return _plain_lora(layer, adapter, config)
    base = type(layer.get_base_layer()).__name__
    raise UserError(
        f"layer {name} is a {type(layer).__name__} around a {base}, which has no plain LoRA form here; adapt linear "
        "layers only, or keep the adapter in PEFT's format"
    )


def _plain_lora(layer: Any, adapter: str, config: LoraConfig) -> PlainLora:
    r, alpha = layer.r[adapter], layer.lora_alpha[adapter]
    scaling = alpha / r**0.5 if config.use_rslora else alpha / r  # not layer.scaling, which diffusers changes
    magnitude = None
    if config.use_dora:
        magnitude = layer.lora_magnitude_vector[adapter].weight.detach().float()
    a, b = (getattr(layer, name)[adapter].weight.detach().float() for name in ("lora_A", "lora_B"))
    return PlainLora(a, b, scaling, magnitude)


def _saved(value: Tensor) -> Tensor:
    return value.detach().cpu().clone().contiguous()


def _peft_weights(layers: Mapping[str, PlainLora]) -> dict[str, Tensor]:
    weights = {}
    for name, layer in layers.items():
        weights[f"{_BASE}{name}.lora_A.weight"] = _saved(layer.a)
        weights[f"{_BASE}{name}.lora_B.weight"] = _saved(layer.b)
    return weights


def _lora_config(config: Any, layers: Mapping[str, PlainLora]) -> LoraConfig:
    """A configuration under which PEFT scales every layer by exactly lora_alpha/r = s."""
    # anchored: PEFT takes a pattern for the end of a name, so that `proj` alone would also be `visual.proj`
    ranks = {f"^{name}": layer.rank for name, layer in layers.items()}
    alphas = {f"^{name}": layer.scaling * layer.rank for name, layer in layers.items()}
    r = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return LoraConfig(
        r=r,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        modules_to_save=config.modules_to_save,
        rank_pattern={name: rank for name, rank in ranks.items() if rank != r},
        alpha_pattern={name: value for name, value in alphas.items() if value != alpha},
        lora_dropout=config.lora_dropout if isinstance(config, LoraConfig) else config.dropout,
        base_model_name_or_path=config.base_model_name_or_path,
        task_type=config.task_type,
    )
