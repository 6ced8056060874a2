"""MoSLoRA, GOAT and their relatives as one PEFT tuner; importing this makes PEFT know it."""

from common.adapters.config import MosgoatConfig
from common.adapters.export import export_lora
from common.adapters.methods import METHODS, Method, attach, build_config, check_targets
from common.adapters.registration import register
from common.adapters.state import (
    GOAT_TABLE_1_PARAMETERS,
    ParameterCount,
    adapter_tensors,
    balance_loss,
    reset_router_load,
    router_load,
    set_token_mask,
    trainable_fraction,
)

register()

__all__ = [
    "GOAT_TABLE_1_PARAMETERS",
    "METHODS",
    "Method",
    "MosgoatConfig",
    "ParameterCount",
    "adapter_tensors",
    "attach",
    "balance_loss",
    "build_config",
    "check_targets",
    "export_lora",
    "reset_router_load",
    "router_load",
    "set_token_mask",
    "trainable_fraction",
]
