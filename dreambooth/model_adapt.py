"""What of SDXL is trained: adapters on the attention of the UNet, and of the text encoders if asked."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.utils import PeftType

from common.adapters import MosgoatConfig, attach, check_targets
from common.config import AdapterConfig
from common.devices import require_compiler
from common.errors import UserError
from dreambooth.config import TARGET_MODULES, TEXT_TARGET_MODULES, DreamboothRecipe
from dreambooth.model_base import TEXT_ENCODERS, SdxlBase


def prepare_training(base: SdxlBase, recipe: DreamboothRecipe) -> SdxlBase:
    """Make ready for training, in place: put the adapters on, in float32, and freeze everything else.

    Args:
        base: from `load_model`, with its text encoders where they are to be trained.
        recipe: a sound recipe.

    Returns:
        `base`.

    Raises:
        UserError: a target that matches no layer, or a rank that is larger than one.
    """
    adapter = recipe.adapter
    if adapter.method == "moslora" and adapter.mixer_init is None:
        # [M] 4.3 starts the mixer orthogonal for SDXL, where their other models start it as `nn.Linear`
        adapter = dataclasses.replace(adapter, mixer_init="orthogonal")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # PEFT asks transformers for it
        base.adapters["unet"] = _attach("adapter", base.unet, adapter, TARGET_MODULES)
        if recipe.text_encoder.train:
            assert base.text_encoders is not None, "the text encoders have been released"
            own = _text_adapter(adapter, recipe)
            for name, encoder in zip(TEXT_ENCODERS, base.text_encoders, strict=True):
                # the UNet sees the last layer but one, and of the second encoder the pooled output of the last
                unused = _last_layer(encoder) if name == "text_encoder" else None
                base.adapters[name] = _attach("text_encoder", encoder, own, TEXT_TARGET_MODULES, unused)
    modules: list[Any] = [base.unet, *((base.text_encoders or ()) if recipe.text_encoder.train else ())]
    for module in modules:
        module.train()
    if recipe.train.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()  # diffusers' own, non-reentrant
        for encoder in modules[1:]:
            enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
            enable({"use_reentrant": False})
    if recipe.train.compile:
        require_compiler()
        base.unet.compile_repeated_blocks(fullgraph=True)
    return base


def check_adapters(base: SdxlBase, recipe: DreamboothRecipe) -> None:
    """Raise `UserError` for a target that matches no layer, or a rank that is larger than one."""
    parts: list[tuple[str, Any, AdapterConfig, tuple[str, ...]]] = [
        ("adapter", base.unet, recipe.adapter, TARGET_MODULES)
    ]
    if recipe.text_encoder.train:
        own = _text_adapter(recipe.adapter, recipe)
        parts += [("text_encoder", encoder, own, TEXT_TARGET_MODULES) for encoder in base.text_encoders or ()]
    for section, module, adapter, targets in parts:
        with _named(section):
            check_targets(module, adapter.target_modules or targets, adapter)


@contextlib.contextmanager
def _named(section: str) -> Iterator[None]:
    """Put the section in front of an error that names a key without it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{section}.{error}") from error


def _attach(
    section: str, module: Any, adapter: AdapterConfig, targets: tuple[str, ...], unused: str | None = None
) -> Any:
    def change(config: Any) -> PeftConfig:
        config.exclude_modules = unused  # DDP stops at parameters without a gradient
        return _gaussian_start(config)

    with _named(section):
        return attach(module, adapter, targets, change)


def _last_layer(encoder: Any) -> str:
    """A regular expression for the names of what lies in the last layer of a text encoder."""
    return rf"(?:text_model\.)?encoder\.layers\.{encoder.config.num_hidden_layers - 1}\..*"


def _text_adapter(adapter: AdapterConfig, recipe: DreamboothRecipe) -> AdapterConfig:
    own = recipe.text_encoder
    return dataclasses.replace(
        adapter,
        r=adapter.r if own.r is None else own.r,
        alpha=adapter.alpha if own.alpha is None else own.alpha,
        target_modules=own.target_modules,
    )


def _gaussian_start(config: PeftConfig) -> PeftConfig:
    """A starts at N(0, 1/r²), as in the published script and so in [M] 4.3, where it would be Kaiming-uniform."""
    if isinstance(config, MosgoatConfig) and config.init == "kaiming":
        config.init = "gaussian"
    elif isinstance(config, LoraConfig) and config.peft_type == PeftType.LORA:
        config.init_lora_weights = "gaussian"
    return config
