"""The adapted linear layer: y = W0 x + s · B · M(x) · A · x - R x.

Dimension letters: N tokens, r total rank, E experts, d = r/E.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from common.adapters.config import Mixer, MosgoatConfig
from common.adapters.loading import require_loaded
from common.adapters.mixing import fold, mix_experts
from common.adapters.project import autocast_device, project
from common.adapters.quantised import is_quantised
from common.adapters.routing import RoutingRecord
from common.adapters.spec import MIXER_NAMES, LayerSpec, start_values
from common.adapters.start import require_fitting_rank
from common.adapters.strength import scale_layer, set_scale, unscale_layer
from common.errors import UserError


def move_to_base(layer: Any, adapter_name: str, device: torch.device | None = None) -> None:
    """Move an adapter to its base layer's device or another; as PEFT's, but every tensor stays what it is.

    A detour over the base's bfloat16 would round the float32 masters, and a bare tensor put into a `ParameterDict`
    becomes a parameter that is trained, whether it was or not.
    """
    target = device if device is not None else layer.get_base_layer().weight.device
    for name in (*layer.adapter_layer_names, *layer.frozen_names):
        store = getattr(layer, name)
        if adapter_name in store and store[adapter_name].device.type != "meta":
            here = store[adapter_name]
            there = here.detach().to(target)
            store[adapter_name] = nn.Parameter(there, here.requires_grad) if isinstance(here, nn.Parameter) else there


class MosgoatLinear(nn.Module, BaseTunerLayer):
    """An `nn.Linear` (or its quantised form) with adapters beside it; the layer itself is never changed.

    Args:
        base_layer: the linear layer.
        name: its name, for messages.
    """

    # what PEFT's mixin gives, for the type checker
    active_adapters: list[str]
    merged: bool
    get_base_layer: Callable[[], nn.Linear]

    adapter_layer_names = ("mosgoat_A", "mosgoat_B", "mosgoat_sigma", *MIXER_NAMES)
    frozen_names = ("mosgoat_A0", "mosgoat_B0", "mosgoat_segment_scale", "mosgoat_U", "mosgoat_V")
    other_param_names = (*frozen_names, "specs", "scaling", "routing")
    _move_adapter_to_device_of_base_layer = move_to_base
    set_scale, scale_layer, unscale_layer = set_scale, scale_layer, unscale_layer  # diffusers calls them

    def __init__(self, base_layer: nn.Linear, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.in_features = base_layer.in_features
        self.out_features = base_layer.out_features
        self.mosgoat_A = nn.ParameterDict()  # (r, in), experts stacked as rows; (d, in) where they share it
        self.mosgoat_B = nn.ParameterDict()  # (out, r), experts stacked as columns
        self.mosgoat_mixer = nn.ParameterDict()  # (r, r), its diagonal (r,) in KaSA
        self.mosgoat_router = nn.ParameterDict()  # (E, in)
        self.mosgoat_threshold = nn.ParameterDict()  # (1, in), AdaMoLE
        self.mosgoat_threshold_bias = nn.ParameterDict()  # (1,)
        self.mosgoat_A0 = BufferDict(persistent=True)  # start of A, kept for the residual
        self.mosgoat_B0 = BufferDict(persistent=True)
        self.mosgoat_segment_scale = BufferDict(persistent=True)  # (E,), GOAT+
        self.mosgoat_sigma = nn.ParameterDict()  # (t,), LoRA-Dash: Δσ of t singular directions of W0
        self.mosgoat_U = BufferDict(persistent=True)  # (out, t), zero until they are chosen
        self.mosgoat_V = BufferDict(persistent=True)  # (t, in)
        self.specs: dict[str, LayerSpec] = {}
        self.scaling: dict[str, float] = {}  # the s in use; diffusers changes it
        self.routing: dict[str, RoutingRecord] = {}
        self.awaited: set[str] = set()  # adapters whose values are to come from a file, until they are first used
        self.merged_adapters: list[str] = []
        self._weight_before_merge: Tensor | None = None

    # -- making and moving adapters ------------------------------------------------------------------------

    def add_adapter(self, adapter: str, config: MosgoatConfig, r: int, alpha: float, mixer: Mixer) -> None:
        """Make the weights of a new adapter on the base weight's device, in float32; the tuner activates it."""
        config.require_rank(r, mixer, self.name)
        require_fitting_rank(r, self.in_features, self.out_features, self.name)
        spec = LayerSpec.of(config, r, alpha, mixer, self.in_features)
        self.specs[adapter], self.scaling[adapter] = spec, spec.scaling
        if config.weights_saved:
            self.awaited.add(adapter)
        if config.routed:
            self.routing[adapter] = RoutingRecord()
        for name, value in start_values(config, spec, self.get_base_layer(), self.name).items():
            getattr(self, name)[adapter] = nn.Parameter(value) if name in self.adapter_layer_names else value

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters and make their weights trainable, but for those the configuration freezes."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._freeze()

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        """Switch the gradients of adapters, but for weights that the configuration freezes."""
        super().set_requires_grad(adapter_names, requires_grad)
        self._freeze()

    def _freeze(self) -> None:
        for adapter, spec in self.specs.items():
            for name in spec.frozen:
                if adapter in getattr(self, name):
                    getattr(self, name)[adapter].requires_grad_(False)

    # -- forward -------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the layer and every active adapter.

        Args:
            x: (..., in), any floating dtype.
            *args: handed to the base layer.
            **kwargs: handed to the base layer.

        Returns:
            (..., out) in the base layer's output dtype.
        """
        if self._disable_adapters and self.merged:
            self.unmerge()
        y = self.base_layer(x, *args, **kwargs)
        if self._disable_adapters or self.merged:
            return y
        for adapter in self.active_adapters:
            if adapter in self.mosgoat_A:
                if adapter in self.awaited:
                    require_loaded(self, adapter, x)
                y = self._add_update(y, x, adapter)
        return y

    def _add_update(self, y: Tensor, x: Tensor, adapter: str) -> Tensor:
        spec = self.specs[adapter]
        dtype = x.dtype
        kind = autocast_device(x)
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            mixed = self._mixed(x.reshape(-1, self.in_features), adapter, spec, dtype)  # (N, r or 2r)
            up = self._up(adapter, spec, self.scaling[adapter]).to(dtype)  # (out, r or 2r)
            flat = y.reshape(-1, self.out_features)
            if flat.dtype == dtype:
                return torch.addmm(flat, mixed, up.T).view(y.shape)
            return (flat + F.linear(mixed, up).to(flat.dtype)).view(y.shape)

    def _mixed(self, x: Tensor, adapter: str, spec: LayerSpec, dtype: torch.dtype) -> Tensor:
        """M(x)·A·drop(x), and behind it A0·x where there is a residual; (N, r or 2r)."""
        p = spec.dropout if self.training else 0.0
        residual = adapter in self.mosgoat_A0
        h, rest, logits = project(
            x, self.mixed_down(adapter), self.mosgoat_A0[adapter] if residual else None, self._gate(adapter), p, dtype
        )
        if logits is not None:
            bias = self.mosgoat_threshold_bias[adapter] if spec.mixer == "threshold" else None
            h = mix_experts(h, logits, bias, spec, self.routing[adapter], self.training).to(dtype)
        return h if rest is None else torch.cat([h, rest], dim=-1)

    def mixed_down(self, adapter: str) -> Tensor:
        """M·A (r, in) for a mixer that does not depend on x, above V where there is one; A alone for a routed one."""
        spec = self.specs[adapter]
        down = fold(spec.mixer, self.mosgoat_A[adapter], self.mosgoat_mixer.get(adapter))
        return torch.cat([down, self.mosgoat_V[adapter]]) if spec.num_directions else down

    def _gate(self, adapter: str) -> Tensor | None:
        """The matrix whose product with x gives the logits: the router (E, in), above the threshold's row if any."""
        spec = self.specs[adapter]
        if spec.mixer == "threshold":
            return torch.cat([self.mosgoat_router[adapter], self.mosgoat_threshold[adapter]])
        return self.mosgoat_router[adapter] if spec.routed else None

    def _up(self, adapter: str, spec: LayerSpec, scaling: float) -> Tensor:
        """s·B, and beside it -s·mean_mixing·B0 where there is a residual; (out, r or 2r)."""
        factor: Tensor | float = scaling
        if adapter in self.mosgoat_segment_scale:
            factor = scaling * self.mosgoat_segment_scale[adapter].repeat_interleave(spec.expert_rank)
        up = self.mosgoat_B[adapter] * factor
        if spec.num_directions:
            # LoRA-Dash: s·B·A + Σ Δσᵢ·uᵢ·vᵢᵀ; another strength than trained holds for both
            directions = self.mosgoat_U[adapter] * self.mosgoat_sigma[adapter]  # (out, t)
            return torch.cat([up, directions * (scaling / spec.scaling)], dim=1)
        if adapter not in self.mosgoat_B0:
            return up
        # [G] eq. 15: W0 - (s/E)·Σ B0ⁱA0ⁱ, exact on average over the routing
        return torch.cat([up, self.mosgoat_B0[adapter] * (factor * -spec.mean_mixing)], dim=1)

    # -- merging -------------------------------------------------------------------------------------------

    def plain_factors(self, adapter: str) -> tuple[Tensor, Tensor, float]:
        """The adapter as a plain LoRA (A', B', s) with update s·B'·A', in float32 or wider, detached.

        Returns:
            A' (r, in) and B' (out, r), or twice as wide where there is a residual, and s as trained.

        Raises:
            UserError: for a routed adapter, whose update differs from token to token.
        """
        spec = self.specs[adapter]
        if spec.routed:
            chosen = {"topk": f"{spec.top_k} of", "threshold": "those above its threshold of", "shared_a": "all"}
            raise UserError(
                f"adapter {adapter!r} routes every token to {chosen[spec.mixer]} {spec.num_experts} experts, so no "
                "single weight equals it: it cannot be merged into the base model or exported as a plain LoRA; keep "
                "it as an adapter, or train moslora or lora instead"
            )
        down = self.mixed_down(adapter)
        if adapter in self.mosgoat_A0:
            down = torch.cat([down, self.mosgoat_A0[adapter]])
        dtype = torch.promote_types(down.dtype, torch.float32)
        return down.detach().to(dtype), self._up(adapter, spec, 1.0).detach().to(dtype), spec.scaling

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update at its present strength, s·B·M·A - R, (out, in) float32; raises as `plain_factors` does."""
        down, up, _ = self.plain_factors(adapter)
        return up @ down * self.scaling[adapter]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' updates to the base weight; `unmerge` restores it bit by bit.

        Args:
            safe_merge: refuse a result that is not finite.
            adapter_names: which; None: the active ones.

        Raises:
            UserError: for a routed adapter, or a base weight that is quantised.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.mosgoat_A]
        if not names:
            return
        weight = self.get_base_layer().weight
        if is_quantised(self.get_base_layer()):
            raise UserError(
                f"layer {self.name} has a quantised weight ({weight.dtype}), which would be rounded again by merging; "
                "load the base model in bfloat16 or float32 to merge into it"
            )
        for name in self.awaited.intersection(names):
            require_loaded(self, name, weight)
        with torch.no_grad():
            merged = weight.data + sum(self.get_delta_weight(name) for name in names)
            if safe_merge and not torch.isfinite(merged).all():
                raise UserError(f"merging {', '.join(names)} into layer {self.name} gives values that are not finite")
            if self._weight_before_merge is None:
                self._weight_before_merge = weight.data
            weight.data = merged.to(weight.dtype)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the base weight back as it was before `merge`, on the device and in the dtype it has now."""
        if self._weight_before_merge is not None:
            weight = self.get_base_layer().weight
            weight.data = self._weight_before_merge.to(weight)
        self._weight_before_merge = None
        self.merged_adapters = []

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT may turn the adapter into a LoRA."""
        return adapter_name in self.specs and not self.specs[adapter_name].routed

    def __repr__(self) -> str:
        return "mosgoat." + super().__repr__()
