"""What of a LLaVA model is trained: adapters on the language model and the tower, and the projector."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from peft import PeftConfig, get_peft_model

from common.adapters import METHODS, build_config, check_targets
from common.adapters.methods import recipe_overrides
from common.config import DEFAULT_ALPHA, uses_alpha
from common.errors import UserError
from llava.config import TARGET_MODULES, TOWER_TARGET_MODULES, LlavaRecipe
from llava.model_base import LlavaBase

PROJECTOR = "multi_modal_projector"
HEAD = "lm_head"
# as PEFT matches the patterns of ranks: against the whole name
_TOWER = r"model\.vision_tower\..*"


@dataclass(frozen=True)
class _Part:
    """A part of the model that gets adapters.

    Args:
        key: its section in recipes.
        name: in words.
        prefix: of the names of its modules.
        layers: the same, or what of it is to be adapted, as a regular expression.
        targets: ends of names of layers.
        r: their rank.
    """

    key: str
    name: str
    prefix: str
    layers: str
    targets: Sequence[str]
    r: int

    def pattern(self) -> str:
        """A regular expression that matches the full names of the targeted layers, and nothing of other parts."""
        inside = [re.escape(target) for target in self.targets if target != HEAD or self.key != "adapter"]
        found = [rf"{self.layers}(?:.*\.)?(?:{'|'.join(inside)})"] if inside else []
        return "|".join(found + [HEAD] * (len(inside) < len(self.targets)))


def prepare_training(base: LlavaBase, recipe: LlavaRecipe) -> LlavaBase:
    """Make ready for training, in place: attach the adapters, unfreeze the projector.

    Language model and tower get one PEFT adapter with patterns for the tower's rank, alpha and mixer. The projector
    is trained whole and saved with the adapter. What is trained is float32; the rest stays as it was loaded.

    Args:
        base: from `load_model`.
        recipe: a sound recipe; with `stage=pretrain` only the projector is trained, without PEFT.

    Returns:
        `base`, whose model is a `PeftModel` now, unless only the projector is trained.

    Raises:
        UserError: a target that matches no layer of its part, or a rank, alpha or mixer that the method cannot have.
    """
    base.model.requires_grad_(False)
    llava = base.llava()
    if recipe.stage == "pretrain":
        getattr(llava.model, PROJECTOR).requires_grad_(True)
    else:
        config = peft_config(llava, recipe)
        _require_quantizable(llava, recipe.adapter.method, config)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # PEFT asks transformers for it
            base.model = get_peft_model(llava, config)
    if recipe.train.gradient_checkpointing:
        # after PEFT, which would make the embeddings' output need a gradient: re-entrant checkpointing wants that
        enable = getattr(llava, "activation_checkpointing_enable", None) or llava.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    base.model.train()
    return base


def peft_config(llava: Any, recipe: LlavaRecipe) -> PeftConfig:
    """PEFT's configuration of a recipe's adapter and tower sections.

    Args:
        llava: the model that it is for; the meta device will do.
        recipe: a sound recipe of stage `finetune`.

    Raises:
        UserError: see `prepare_training`.
    """
    adapter, tower = recipe.adapter, recipe.tower
    text = "model.language_model."
    targets: Sequence[str] = adapter.target_modules or TARGET_MODULES
    parts = [_Part("adapter", "the language model", text, re.escape(text), targets, adapter.r)]
    if tower.adapt:
        # by number: on the undropped tower of stock transformers the pattern would match layers without weights
        numbers = "|".join(map(str, range(llava.config.vision_config.num_hidden_layers)))
        layers = rf"model\.vision_tower\.encoder\.layers\.(?:{numbers})\."
        targets, r = tower.target_modules or TOWER_TARGET_MODULES, adapter.r if tower.r is None else tower.r
        parts.append(_Part("tower", "the vision tower", "model.vision_tower.", layers, targets, r))
    for part in parts:
        inside = [name for name, _ in llava.named_modules() if name.startswith(part.prefix)]
        among = [*inside, HEAD] if part.key == "adapter" else inside
        own = replace(adapter, r=part.r)
        check_targets(llava, part.targets, own, among=among, key=f"{part.key}.target_modules", part=part.name)
    patterns = _tower_patterns(recipe) if tower.adapt else {}
    return build_config(
        adapter.method,
        r=adapter.r,
        target_modules="|".join(part.pattern() for part in parts),
        modules_to_save=[PROJECTOR] if recipe.model.train_projector else None,
        **patterns,
        **recipe_overrides(adapter),
    )


def _require_quantizable(llava: Any, method: str, config: PeftConfig) -> None:
    # PEFT's other tuners add a matrix to the packed 4-bit weight, and fail at the first forward
    able = METHODS[method].ours or str(config.peft_type.value) in ("LORA", "ADALORA")
    if getattr(llava, "is_loaded_in_4bit", False) and not able:
        raise UserError(
            f"adapter.method={method} does not work on a language model in 4 bit; set model.quantization=none, or use "
            "lora, dora, moslora, goat or another method of its kind"
        )


def _tower_patterns(recipe: LlavaRecipe) -> dict[str, Any]:
    adapter, tower, method = recipe.adapter, recipe.tower, METHODS[recipe.adapter.method]
    wanted = {
        "r": ("rank_pattern", tower.r, adapter.r),
        "alpha": ("alpha_pattern", tower.alpha, DEFAULT_ALPHA if adapter.alpha is None else adapter.alpha),
        "mixer": ("mixer_pattern", "identity" if tower.mixer == "identity" else None, None),
    }
    found = {}
    for key, (pattern, value, elsewhere) in wanted.items():
        if value is None or value == elsewhere:
            continue
        if pattern not in method.extra or (key == "alpha" and not uses_alpha(adapter)):
            raise UserError(
                f"tower.{key}={value}: adapter.method={adapter.method} cannot have another {key} on the tower than on "
                f"the language model; leave tower.{key} out"
            )
        found[pattern] = {_TOWER: value}
    return found
