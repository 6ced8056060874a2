"""Turn an adapter into a plain LoRA, the form that every tool opens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from common.adapters.config import MosgoatConfig
from common.adapters.layer import MosgoatLinear
from common.errors import UserError

_BASE = "base_model.model."


def export_lora(peft_model: PeftModel, directory: str | Path, adapter: str = "default") -> None:
    """Write an adapter as a plain LoRA in PEFT's format: A' = M·A, B' = B, the same scaling, nothing lost.

    A residual branch makes the rank twice as large: A' = [A; A0], B' = [B, -mean_mixing·B0].

    Args:
        peft_model: the model with the adapter.
        directory: where `adapter_config.json` and `adapter_model.safetensors` are written.
        adapter: which adapter.

    Raises:
        UserError: for a routed adapter, or one of another kind.
    """
    config = peft_model.peft_config[adapter]
    if isinstance(config, LoraConfig):
        peft_model.save_pretrained(str(directory), selected_adapters=[adapter])
        return
    if not isinstance(config, MosgoatConfig):
        raise UserError(f"adapter {adapter!r} is of PEFT's type {config.peft_type}, which is no LoRA")

    weights: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    scalings: dict[str, float] = {}
    for full_name, layer in peft_model.named_modules():
        if isinstance(layer, MosgoatLinear) and adapter in layer.specs:
            name = full_name.removeprefix(_BASE)
            a, b, scalings[name] = layer.plain_factors(adapter)
            ranks[name] = a.shape[0]
            weights[f"{_BASE}{name}.lora_A.weight"] = a.cpu().contiguous()
            weights[f"{_BASE}{name}.lora_B.weight"] = b.cpu().contiguous()
    own = tuple(full_name + "." for full_name in (_BASE + name for name in ranks))
    for key, value in get_peft_model_state_dict(peft_model, adapter_name=adapter).items():
        if not key.startswith(own):
            weights[key] = value.detach().cpu().contiguous()  # modules_to_save

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    _lora_config(config, ranks, scalings).save_pretrained(str(directory))


def _lora_config(config: MosgoatConfig, ranks: dict[str, int], scalings: dict[str, float]) -> LoraConfig:
    """A configuration under which PEFT scales every layer by exactly lora_alpha/r = s."""
    # anchored: PEFT takes a pattern for the end of a name, so that `proj` alone would also be `visual.proj`
    ranks = {f"^{name}": rank for name, rank in ranks.items()}
    alphas = {f"^{name}": scaling * ranks[f"^{name}"] for name, scaling in scalings.items()}
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
        lora_dropout=config.dropout,
        base_model_name_or_path=config.base_model_name_or_path,
        task_type=config.task_type,
        inference_mode=True,
    )
