"""The PEFT tuner that puts `MosgoatLinear` in the place of the targeted linear layers."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import get_pattern_key
from torch import nn
from tqdm import tqdm

from common.adapters.config import SVD_STARTS, MosgoatConfig
from common.adapters.layer import MosgoatLinear
from common.errors import UserError


class MosgoatModel(BaseTuner):
    """A model with mosgoat adapters; made by `peft.get_peft_model(model, MosgoatConfig(...))`."""

    prefix = "mosgoat_"
    tuner_layer_cls = MosgoatLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT's attribute; targets are always named

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT's injection, with a progress bar while decompositions keep the user waiting."""
        config = self.peft_config[adapter_name]
        fast = config.init not in SVD_STARTS or config.weights_saved
        bar = tqdm(desc="decomposing base weights", unit=" layers", delay=2, disable=True if fast else None)
        with bar as self._progress:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        del self._progress

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
        r = peft_config.rank_pattern.get(rank_key, peft_config.r)
        alpha = peft_config.alpha_pattern.get(alpha_key, peft_config.alpha)
        if isinstance(target, MosgoatLinear):
            target.add_adapter(adapter_name, peft_config, r, alpha)
            return
        layer = MosgoatLinear(require_linear(current_key, target, parent), current_key)
        layer.add_adapter(adapter_name, peft_config, r, alpha)
        self._replace_module(parent, target_name, layer, target)
        self._progress.update()


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
