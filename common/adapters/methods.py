"""The one table of methods: name -> what it is and how its PEFT configuration is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn

from common.adapters.config import MosgoatConfig
from common.adapters.start import require_fitting_rank
from common.adapters.tuner import require_linear
from common.config import OPTIONS, AdapterConfig, did_you_mean
from common.errors import UserError

# Settings that concern PEFT rather than a method, and so go with each of them.
_COMMON = frozenset({"dropout", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern"})
_OPTIONAL = ("alpha", "scaling", "mixer_init", "num_experts", "top_k", "rho", "eta", "balance_coef")


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Args:
        name: as in recipes and tables.
        paper: where it comes from.
        equation: the update in words.
        mergeable: whether it can be merged into the base weights.
        routed: whether it sends tokens to experts.
        exportable: whether `export_lora` turns it into a plain LoRA.
        ours: whether our own tuner implements it; PEFT does otherwise.
        build: makes the configuration from (r, alpha, target_modules, overrides); None: not an adapter.
    """

    name: str
    paper: str
    equation: str
    mergeable: bool
    routed: bool
    exportable: bool
    ours: bool
    build: Callable[..., PeftConfig] | None


def _lora(*, r: int, alpha: float, target_modules: Sequence[str] | str, **overrides: Any) -> LoraConfig:
    scaling = overrides.pop("scaling", "alpha_over_r")
    dropout = overrides.pop("dropout", 0.0)
    if scaling in ("theory", "alpha_over_expert_rank"):
        raise UserError(
            f"scaling={scaling} is not known to PEFT's LoRA; use alpha_over_r, alpha_over_sqrt_r or a number, or "
            "method=moslora with mixer_init=identity"
        )
    if isinstance(scaling, (int, float)):
        alpha, scaling = scaling * r, "alpha_over_r"
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    return LoraConfig(
        r=r,
        # PEFT's field is an int; a whole number stays one in the saved file
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        lora_dropout=dropout,
        target_modules=targets,
        use_rslora=scaling == "alpha_over_sqrt_r",
        **overrides,
    )


def _mosgoat(**fixed: Any) -> Callable[..., PeftConfig]:
    def build(*, r: int, alpha: float, target_modules: Sequence[str] | str, **overrides: Any) -> MosgoatConfig:
        targets = target_modules if isinstance(target_modules, str) else list(target_modules)
        return MosgoatConfig(r=r, alpha=alpha, target_modules=targets, **{**fixed, **overrides})

    return build


def _goat(name: str, equation: str, **fixed: Any) -> Method:
    build = _mosgoat(mixer="topk", scaling="theory", **fixed)
    paper = "Fan et al. 2025, Make LoRA Great Again"
    return Method(name, paper, equation, False, True, False, True, build)


_LORA_PAPER = "Hu et al. 2021, LoRA"
_MOSLORA_PAPER = "Wu et al. 2024, Mixture-of-Subspaces in Low-Rank Adaptation"
_ROUTED = "top-k routed experts"

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method("full", "", "every weight is trained", False, False, False, False, None),
            Method("linear_probe", "", "only a new head is trained", False, False, False, False, None),
            Method("lora", _LORA_PAPER, "(α/r)·B·A", True, False, True, False, _lora),
            Method(
                "ts_mixing",
                _MOSLORA_PAPER,
                "(α/r)·B·M·A with a fixed butterfly M, eq. 6",
                True,
                False,
                True,
                True,
                _mosgoat(mixer="butterfly"),
            ),
            Method(
                "moslora",
                _MOSLORA_PAPER,
                "(α/r)·B·M·A with a trained r×r mixer M, eq. 7",
                True,
                False,
                True,
                True,
                _mosgoat(mixer="dense"),
            ),
            Method(
                "molora",
                "Zadouri et al. 2023, Pushing Mixture of Experts to the Limit",
                f"{_ROUTED}, B = 0 at the start",
                False,
                True,
                False,
                True,
                _mosgoat(mixer="topk", scaling="alpha_over_expert_rank"),
            ),
            _goat("goat", f"{_ROUTED} from SVD segments over the whole spectrum, eq. 13-19", init="spread"),
            _goat(
                "goat_plus", "goat with its own scaling for every segment, eq. 83", init="spread", segment_scaling=True
            ),
            _goat("goat_principal", f"{_ROUTED} from the largest singular triplets, E.3", init="principal"),
            _goat("goat_minor", f"{_ROUTED} from the smallest singular triplets, E.3", init="minor"),
            _goat("goat_random", f"{_ROUTED} from random segments, E.3", init="random"),
        )
    }
)


def build_config(
    method: str, *, r: int, alpha: float = 16.0, target_modules: Sequence[str] | str, **overrides: Any
) -> PeftConfig:
    """The PEFT configuration of a method.

    Args:
        method: a name in `METHODS` that is an adapter.
        r: total rank.
        alpha: numerator of the scalings named `alpha_over_...`.
        target_modules: names or ends of names of linear layers, or one regular expression.
        **overrides: settings of `MosgoatConfig`: `dropout`, `exclude_modules`, `modules_to_save`,
            `rank_pattern`, `alpha_pattern`, and what `common.config.OPTIONS` lists for the method.

    Returns:
        PEFT's configuration or ours, for `peft.get_peft_model`.

    Raises:
        UserError: for an unknown method or override, one without effect, or an impossible value.
    """
    if method not in METHODS:
        raise UserError(f"method={method} is unknown; {did_you_mean(method, METHODS)}")
    build = METHODS[method].build
    if build is None:
        raise UserError(f"method={method} is not an adapter and has no PEFT configuration")
    allowed = (OPTIONS[method] | _COMMON) - {"alpha", "target_modules"}
    for key in overrides:
        if key not in allowed:
            raise UserError(f"{key} has no effect with method={method}; {did_you_mean(key, allowed)}")
    return build(r=r, alpha=alpha, target_modules=target_modules, **overrides)


def attach(model: nn.Module, config: AdapterConfig, default_targets: Sequence[str]) -> PeftModel:
    """Put the adapter of a recipe on a model, in place, and freeze everything else.

    Args:
        model: the model.
        config: the adapter section of the recipe; its method must be an adapter.
        default_targets: the pipeline's layers, used when the recipe names none.

    Returns:
        The model wrapped by PEFT.

    Raises:
        UserError: when a target matches nothing, is not a linear layer, or is smaller than r.
    """
    assert METHODS[config.method].build is not None, f"{config.method} is not an adapter"
    targets = list(config.target_modules or default_targets)
    check_targets(model, targets, config.r)
    overrides = {key: getattr(config, key) for key in _OPTIONAL if getattr(config, key) is not None}
    peft_config = build_config(config.method, r=config.r, target_modules=targets, dropout=config.dropout, **overrides)
    return get_peft_model(model, peft_config)


def check_targets(model: nn.Module, targets: Sequence[str], r: int) -> None:
    """Raise one `UserError` for a target that matches no layer of `model`, or one an adapter cannot wrap."""
    modules = {name: module for name, module in model.named_modules() if name}
    for target in targets:
        matches = [name for name in modules if name == target or name.endswith("." + target)]
        if not matches:
            known = {name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, nn.Linear)}
            raise UserError(f"target_modules: {target!r} matches no layer; {did_you_mean(target, known)}")
        for name in matches:
            layer = require_linear(name, modules[name], model.get_submodule(name.rpartition(".")[0]))
            require_fitting_rank(r, layer.in_features, layer.out_features, name)
