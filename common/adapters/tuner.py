"""The PEFT tuner that puts `MosgoatLinear` in the place of the targeted linear layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import get_pattern_key
from torch import nn
from tqdm import tqdm

from common.adapters.config import MosgoatConfig
from common.adapters.layer import MosgoatLinear
from common.adapters.loading import require_complete, require_targets_named
from common.adapters.quantised import keep_layout
from common.errors import UserError
from common.words import did_you_mean


@contextmanager
def one_adapter_per_batch(tuner: BaseTuner, *_: Any, **kwargs: Any) -> Iterator[None]:
    """PEFT's context around a forward pass; it would drop `adapter_names` where a tuner has no such context."""
    if kwargs.get("adapter_names") is not None:
        raise UserError(
            f"adapter_names={kwargs['adapter_names']}: {type(tuner).__name__} cannot give every sample its own "
            "adapter; choose one for the batch by set_adapter"
        )
    yield


class MosgoatModel(BaseTuner):
    """A model with mosgoat adapters; made by `peft.get_peft_model(model, MosgoatConfig(...))`."""

    prefix = "mosgoat_"
    tuner_layer_cls = MosgoatLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT's attribute; targets are always named
    _enable_peft_forward_hooks = one_adapter_per_batch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_load_state_dict_post_hook(require_complete)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT's injection, with a progress bar while decompositions keep the user waiting."""
        config = self.peft_config[adapter_name]
        require_targets_named(self, config)
        _require_matching_patterns(config, model)
        keep_layout(model)
        fast = not config.has_residual or config.weights_saved
        total = sum(bool(self._check_target_module_exists(config, name)) for name, _ in model.named_modules())
        # disable=None: no bar where nobody looks, in a file or a pipe
        bar = tqdm(
            desc="decomposing base weights",
            total=total or None,
            unit=" layers",
            delay=2,
            disable=True if fast else None,
        )
        with bar as self._progress:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        del self._progress

    def _check_merge_allowed(self) -> None:
        """Raise `UserError` where merging would change more than the adapted layers."""
        super()._check_merge_allowed()
        owners: dict[int, set[str]] = {}
        for name, module in self.model.named_modules():
            for parameter in module.parameters(recurse=False):
                owners.setdefault(id(parameter), set()).add(name)
        for name, layer in self.model.named_modules():
            if isinstance(layer, MosgoatLinear):
                others = owners[id(layer.get_base_layer().weight)] - {f"{name}.base_layer"}
                if others:
                    raise UserError(
                        f"layer {name} shares its weight with {', '.join(sorted(others))}, which merging would change "
                        "too; keep the adapter, leave the layer out with exclude_modules, or untie the weights first"
                    )

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's also copies the child's weight, which one of modules_to_save need not have: merging would fail
        setattr(parent, child_name, new_module)

    def _create_and_replace(
        self,
        peft_config: MosgoatConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
        **_: Any,
    ) -> None:
        rank_key = get_pattern_key(list(peft_config.rank_pattern), current_key)
        alpha_key = get_pattern_key(list(peft_config.alpha_pattern), current_key)
        mixer_key = get_pattern_key(list(peft_config.mixer_pattern), current_key)
        r = peft_config.rank_pattern.get(rank_key, peft_config.r)
        alpha = peft_config.alpha_pattern.get(alpha_key, peft_config.alpha)
        mixer = peft_config.mixer_pattern.get(mixer_key, peft_config.mixer)
        if isinstance(target, MosgoatLinear):
            target.add_adapter(adapter_name, peft_config, r, alpha, mixer)
            self._progress.update()
            return
        layer = MosgoatLinear(require_linear(current_key, target, parent), current_key)
        layer.add_adapter(adapter_name, peft_config, r, alpha, mixer)
        self._replace_module(parent, target_name, layer, target)
        self._progress.update()


def _require_matching_patterns(config: MosgoatConfig, model: nn.Module) -> None:
    """Raise `UserError` for a pattern that matches no module: PEFT would leave its layers at the common value."""
    names = [name for name, _ in model.named_modules() if name]
    for key in ("rank_pattern", "alpha_pattern", "mixer_pattern"):
        for pattern in getattr(config, key):
            if not any(get_pattern_key([pattern], name) == pattern for name in names):
                ends = {name.rpartition(".")[2] for name in names}
                raise UserError(f"{key}: {pattern!r} matches no module; {did_you_mean(pattern, ends)}")


def require_linear(name: str, module: nn.Module, parent: nn.Module) -> nn.Linear:
    """Give `module` back, or raise `UserError` if an adapter around it would not work."""
    if not isinstance(module, nn.Linear):
        raise UserError(
            f"target {name} is a {type(module).__name__}; adapters are for linear layers only: "
            "name linear layers in target_modules, or leave this one out with exclude_modules"
        )
    if isinstance(parent, nn.MultiheadAttention):
        raise UserError(
            f"target {name} belongs to nn.MultiheadAttention, which uses its weight without calling it, so the adapter "
            "would never run; split the attention into q, k, v and out projections first"
        )
    return module
