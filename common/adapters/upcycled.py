"""The upcycled mixture of experts of [G]'s tables: every expert a full copy of a linear layer, as a tuner of its own.

    y = W0 x + Σ_e w_e(x) · Δ_e · x        W_e = W0 + Δ_e, Σ_e w_e = 1, top-k routed

An expert is kept as its difference Δ_e from the frozen layer, zero at the start: the same function and the same
gradients as a copy, but the base layer's weight stays what it is (a 4-bit one too), and a small change of a large
weight is not lost to rounding. Weight decay pulls an expert towards the layer it was copied from, not towards zero.

Dimension letters: N tokens, E experts, k chosen experts of a token.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from common.adapters.config import require_whole_numbers
from common.adapters.layer import move_to_base
from common.adapters.loading import require_complete, require_loaded, require_targets_named
from common.adapters.project import autocast_device
from common.adapters.routing import RoutingRecord, balance_weight, expert_counts, route
from common.adapters.strength import scale_layer, set_scale, unscale_layer
from common.adapters.tuner import one_adapter_per_batch, require_linear
from common.config import DEFAULT_EXPERTS, DEFAULT_TOP_K
from common.errors import UserError


class UpcycledPeftType(str, Enum):  # noqa: UP042 - PEFT tests for both bases
    """PEFT looks its tables up by a str-Enum member or by its text; name and value must be equal."""

    UPCYCLED = "UPCYCLED"


@dataclass
class UpcycledConfig(PeftConfig):
    """An upcycled mixture of experts.

    Args:
        target_modules: names or ends of names of the `nn.Linear` layers to adapt, or one regular expression.
        exclude_modules: names or ends of names to leave out although they are targeted.
        modules_to_save: modules that are trained whole and saved with the adapter.
        num_experts: E.
        top_k: k.
        balance_coef: weight of the balance loss summed over layers; none given: top_k · 1e-3.
        weights_saved: set in the saved file: the values come from it, none are made.

    Raises:
        UserError: for impossible values.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    num_experts: int = DEFAULT_EXPERTS
    top_k: int = DEFAULT_TOP_K
    balance_coef: float | None = None
    weights_saved: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = UpcycledPeftType.UPCYCLED
        if isinstance(self.target_modules, (list, tuple, set)):
            self.target_modules = sorted(self.target_modules)
        require_whole_numbers({"num_experts": self.num_experts, "top_k": self.top_k})
        if not 1 <= self.top_k <= self.num_experts:
            raise UserError(f"top_k={self.top_k} must lie between 1 and num_experts={self.num_experts}")
        if self.balance_coef is not None and not 0 <= self.balance_coef < math.inf:
            raise UserError(f"balance_coef={self.balance_coef} must be a number and not negative")

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`, marked so that a tensor that the file lacks is noticed on loading."""
        saved = copy.copy(self)
        saved.weights_saved = True
        super(UpcycledConfig, saved).save_pretrained(save_directory, **kwargs)

    @property
    def routed(self) -> bool:
        """Always: what a token gets depends on the token."""
        return True


@dataclass(frozen=True)
class UpcycledSpec:
    """What one adapter is on one layer: E, k, the coefficient of its balance loss, and the trained strength."""

    num_experts: int
    top_k: int
    balance_weight: float
    scaling: float = 1.0


class UpcycledLinear(nn.Module, BaseTunerLayer):
    """An `nn.Linear` with experts of its own size beside it; the layer itself is never changed.

    Args:
        base_layer: the linear layer.
        name: its name, for messages.
    """

    # what PEFT's mixin gives, for the type checker
    active_adapters: list[str]
    merged: bool
    get_base_layer: Callable[[], nn.Linear]

    adapter_layer_names = ("upcycled_experts", "upcycled_router")
    frozen_names = ()
    other_param_names = ("specs", "scaling", "routing")
    _move_adapter_to_device_of_base_layer = move_to_base
    set_scale, scale_layer, unscale_layer = set_scale, scale_layer, unscale_layer  # diffusers calls them

    def __init__(self, base_layer: nn.Linear, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.in_features = base_layer.in_features
        self.out_features = base_layer.out_features
        self.upcycled_experts = nn.ParameterDict()  # (E, out, in), W_e - W0
        self.upcycled_router = nn.ParameterDict()  # (E, in)
        self.specs: dict[str, UpcycledSpec] = {}
        self.scaling: dict[str, float] = {}  # of the whole update, 1 as trained; diffusers changes it
        self.routing: dict[str, RoutingRecord] = {}
        self.awaited: set[str] = set()  # adapters whose values are to come from a file, until they are first used
        self.merged_adapters: list[str] = []

    def add_adapter(self, adapter: str, config: UpcycledConfig) -> None:
        """Make the weights of a new adapter on the base weight's device, in float32; the tuner activates it."""
        experts, device = config.num_experts, self.get_base_layer().weight.device
        weight = balance_weight(config.balance_coef, config.top_k)
        self.specs[adapter] = UpcycledSpec(experts, config.top_k, weight)
        self.scaling[adapter] = self.specs[adapter].scaling
        self.routing[adapter] = RoutingRecord()
        zeros = torch.zeros(experts, self.out_features, self.in_features, device=device, dtype=torch.float32)
        router = torch.empty(experts, self.in_features, device="cpu", dtype=torch.float32)
        nn.init.kaiming_uniform_(router, a=math.sqrt(5))
        if config.weights_saved:  # NaN until the file is loaded: a forgotten load must not pass for an adapter
            self.awaited.add(adapter)
            zeros.fill_(math.nan)
            router.fill_(math.nan)
        self.upcycled_experts[adapter] = nn.Parameter(zeros)
        self.upcycled_router[adapter] = nn.Parameter(router.to(device))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the layer and every active adapter.

        Args:
            x: (..., in), any floating dtype.
            *args: handed to the base layer.
            **kwargs: handed to the base layer.

        Returns:
            (..., out) in the base layer's output dtype.
        """
        y = self.base_layer(x, *args, **kwargs)
        if self._disable_adapters:
            return y
        for adapter in self.active_adapters:
            if adapter in self.upcycled_experts:
                if adapter in self.awaited:
                    require_loaded(self, adapter, x)
                update = self._update(x.reshape(-1, self.in_features), adapter)
                if self.scaling[adapter] != 1:  # as trained nothing is computed
                    update = update * self.scaling[adapter]
                y = y + update.to(y.dtype).view(y.shape)
        return y

    def _update(self, x: Tensor, adapter: str) -> Tensor:
        """Σ_e w_e(x) · Δ_e · x; (N, out) in the dtype of the computation."""
        spec = self.specs[adapter]
        dtype = x.dtype
        kind = autocast_device(x)
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            router = self.upcycled_router[adapter]
            logits = F.linear(x.to(router.dtype), router)  # (N, E), float32 whatever the activations are
            weights, chosen = route(logits, spec.top_k)  # (N, E), (N, k)
            self.routing[adapter].keep(logits, chosen, self.training)
            experts = self.upcycled_experts[adapter].to(dtype)
            if torch.compiler.is_compiling() or x.is_meta:
                # no shapes that depend on the data in a compiled graph or without data: every expert sees every token
                return torch.einsum("noe,ne->no", torch.einsum("ni,eoi->noe", x.to(dtype), experts), weights.to(dtype))
            return self._of_chosen(x.to(dtype), experts, weights, chosen)

    def _of_chosen(self, x: Tensor, experts: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """The same, every expert multiplied with its own tokens only."""
        top_k = chosen.shape[1]
        order = chosen.flatten().argsort(stable=True)  # of the N·k slots, those of expert 0 first
        # a copy for every slot: reading a token k times would add its gradients in any order on a GPU
        slots = x.unsqueeze(1).expand(-1, top_k, -1).reshape(-1, self.in_features)[order]  # (N·k, in)
        sizes = expert_counts(chosen, len(experts)).tolist()
        # unbind: its backward writes the experts' gradients once, indexing would write all E of them E times
        parts = [F.linear(part, w) for part, w in zip(slots.split(sizes), experts.unbind(), strict=True)]
        updates = torch.cat(parts)[order.argsort()].unflatten(0, (-1, top_k))  # (N, k, out)
        strength = weights.gather(1, chosen).to(x.dtype)  # (N, k)
        return (updates * strength.unsqueeze(-1)).sum(1)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible; raises `UserError`."""
        spec = next(iter(self.specs.values()))
        raise UserError(
            f"layer {self.name} routes every token to {spec.top_k} of {spec.num_experts} experts, so no single weight "
            "equals it: it cannot be merged into the base model or exported as a plain LoRA; keep it as an adapter"
        )

    def unmerge(self) -> None:
        """Nothing to do, since nothing is ever merged."""

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Never."""
        return False

    def __repr__(self) -> str:
        return "upcycled." + super().__repr__()


class UpcycledModel(BaseTuner):
    """A model with upcycled experts; made by `peft.get_peft_model(model, UpcycledConfig(...))`."""

    prefix = "upcycled_"
    tuner_layer_cls = UpcycledLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT's attribute; targets are always named
    _enable_peft_forward_hooks = one_adapter_per_batch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_load_state_dict_post_hook(require_complete)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT's injection, for named layers only."""
        require_targets_named(self, self.peft_config[adapter_name])
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _create_and_replace(
        self,
        peft_config: UpcycledConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
        **_: Any,
    ) -> None:
        if isinstance(target, UpcycledLinear):
            target.add_adapter(adapter_name, peft_config)
            return
        layer = UpcycledLinear(require_linear(current_key, target, parent), current_key)
        layer.add_adapter(adapter_name, peft_config)
        self._replace_module(parent, target_name, layer, target)
