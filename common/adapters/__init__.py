"""Every method of the papers' tables for PEFT; importing this makes PEFT know our tuners."""

from common.adapters.config import MosgoatConfig
from common.adapters.export import export_lora
from common.adapters.methods import attach, build_config, check_targets, recipe_overrides
from common.adapters.registration import register
from common.adapters.schedule import AdapterSchedule, auxiliary_loss, schedule_tensors
from common.adapters.state import (
    GOAT_TABLE_1_PARAMETERS,
    ParameterCount,
    adapter_tensors,
    balance_and_load,
    balance_loss,
    reset_router_load,
    router_load,
    set_token_mask,
    trainable_fraction,
)
from common.adapters.table import METHODS, Method
from common.adapters.upcycled import UpcycledConfig

register()

__all__ = [
    "GOAT_TABLE_1_PARAMETERS",
    "METHODS",
    "AdapterSchedule",
    "Method",
    "MosgoatConfig",
    "ParameterCount",
    "UpcycledConfig",
    "adapter_tensors",
    "attach",
    "auxiliary_loss",
    "balance_and_load",
    "balance_loss",
    "build_config",
    "check_targets",
    "export_lora",
    "recipe_overrides",
    "reset_router_load",
    "router_load",
    "schedule_tensors",
    "set_token_mask",
    "trainable_fraction",
]
