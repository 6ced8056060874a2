"""How the PEFT configuration of each kind of method is made, ours and PEFT's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import peft
from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig, PeftConfig

from common.adapters.adalora import AdaLoraSchedule
from common.adapters.config import MosgoatConfig
from common.adapters.upcycled import UpcycledConfig
from common.errors import UserError

# (r, alpha, target_modules, **overrides) -> the configuration
Build = Callable[..., PeftConfig]
Targets = Sequence[str] | str


def lora(**fixed: Any) -> Build:
    """PEFT's LoRA or one of its variants; `fixed` are fields of `LoraConfig`."""

    def build(*, r: int, alpha: float, target_modules: Targets, **overrides: Any) -> LoraConfig:
        scaling = overrides.pop("scaling", "alpha_over_r")
        if scaling in ("theory", "alpha_over_expert_rank"):
            raise UserError(
                f"scaling={scaling} is not known to PEFT's LoRA; use alpha_over_r, alpha_over_sqrt_r or a number, or "
                "method=moslora with mixer_init=identity"
            )
        if isinstance(scaling, (int, float)):
            alpha, scaling = scaling * r, "alpha_over_r"
        settings = {"use_rslora": scaling == "alpha_over_sqrt_r", **fixed, **overrides}
        return LoraConfig(
            r=r,
            lora_alpha=_whole(alpha),
            lora_dropout=settings.pop("dropout", 0.0),
            target_modules=_targets(target_modules),
            **settings,
        )

    return build


def adalora(
    *,
    r: int,
    alpha: float,
    target_modules: Targets,
    init_r: int | None = None,
    tinit: int | None = None,
    tfinal: int | None = None,
    delta_t: int | None = None,
    dropout: float = 0.0,
    orthogonal_coef: float = 0.5,
    **overrides: Any,
) -> AdaLoraConfig:
    """PEFT's AdaLoRA; `before_training` fills in what depends on the length of the run."""
    init_r = max(r + 1, round(1.5 * r)) if init_r is None else init_r
    if init_r <= r:
        raise UserError(f"init_r={init_r} must exceed r={r}, which is kept of it")
    config = AdaLoraConfig(
        target_r=r,
        init_r=init_r,
        lora_alpha=_whole(alpha),
        lora_dropout=dropout,
        target_modules=_targets(target_modules),
        orth_reg_weight=orthogonal_coef,
        total_step=1,  # PEFT wants a number; no step is taken before `before_training` has set the real one
        **overrides,
    )
    # an attribute and no field: PEFT's file has no place for a schedule without a run
    config.mosgoat_schedule = AdaLoraSchedule(tinit, tfinal, delta_t)
    return config


def lycoris(kind: type[LoHaConfig] | type[LoKrConfig]) -> Build:
    """PEFT's LoHa or LoKr."""

    def build(*, r: int, alpha: float, target_modules: Targets, **overrides: Any) -> PeftConfig:
        return kind(r=r, alpha=_whole(alpha), target_modules=_targets(target_modules), **overrides)

    return build


def neat(
    *,
    r: int,
    alpha: float,
    target_modules: Targets,
    scaling: float = 1.0,
    activation: str = "relu",
    **overrides: Any,
) -> PeftConfig:
    """PEFT's PEANuT, the later name of NEAT."""
    if isinstance(scaling, str):
        raise UserError(f"scaling={scaling} is not for neat, which has no alpha; use a number")
    return peft.PeanutConfig(
        r=r, scaling=float(scaling), act_fn=activation, target_modules=_targets(target_modules), **overrides
    )


def mosgoat(**fixed: Any) -> Build:
    """Our own tuner; `fixed` are fields of `MosgoatConfig`."""

    def build(*, r: int, alpha: float, target_modules: Targets, **overrides: Any) -> MosgoatConfig:
        return MosgoatConfig(r=r, alpha=alpha, target_modules=_targets(target_modules), **{**fixed, **overrides})

    return build


def full_moe(*, r: int, alpha: float, target_modules: Targets, **overrides: Any) -> UpcycledConfig:
    """Our upcycled mixture of experts, which has neither rank nor alpha."""
    return UpcycledConfig(target_modules=_targets(target_modules), **overrides)


def _targets(target_modules: Targets) -> list[str] | str:
    return target_modules if isinstance(target_modules, str) else list(target_modules)


def _whole(alpha: float) -> float:
    # PEFT's fields are ints; a whole number stays one in the saved file
    return int(alpha) if float(alpha).is_integer() else alpha
