"""What `mosgoat export` asks of this pipeline: a run's adapted tower, or a whole CLIP with the tower merged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from common.export import Adapted
from common.recipes import load
from vit_classify.base import find_base
from vit_classify.checkpoint import read_tensors, write_local
from vit_classify.config import VitRecipe, recipe_problems
from vit_classify.model import load_run

_HEAD_FILES = ("head.safetensors", "head.json")
_PREPROCESS = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")


def load_adapted(run: Path) -> Adapted:
    """The vision tower of a run with its adapter; the head goes beside it.

    The names in the adapter are those of a tower after `vit_classify.attention.split_attention`.
    """
    return Adapted({"tower": load_run(run).tower}, [run / name for name in _HEAD_FILES])


def save_merged(run: Path, directory: Path) -> None:
    """Write the run's CLIP, adapter merged, as a folder for `model.name=local-dir:`, here and in open_clip itself.

    The text side is the base's. The head lies beside it: a zero-shot head can be made again from the text side, a
    linear one cannot.

    Raises:
        UserError: the run is damaged, or its adapter cannot be merged.
    """
    base = find_base(load(run / "config.yaml", VitRecipe, problems=recipe_problems).model)
    tower: Any = load_run(run).tower
    if isinstance(tower, PeftModel):
        tower = tower.merge_and_unload(safe_merge=True)
    state = read_tensors(base.weights)
    # what the tower of a linear head has dropped (its last norm and projection) stays as in the base
    state |= {f"visual.{name}": value for name, value in pack_attention(tower.state_dict()).items()}
    preprocess = {key: base.preprocess[key] for key in _PREPROCESS if key in base.preprocess}
    write_local(state, base.model_cfg, directory, preprocess)
    for name in _HEAD_FILES:
        shutil.copyfile(run / name, directory / name)


def pack_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a split tower under open_clip's own names, q, k and v in one packed tensor."""
    packed = {}
    for name, value in state.items():
        front, _, kind = name.rpartition(".q_proj.")
        if front:
            parts = [value, *(state[f"{front}.{other}_proj.{kind}"] for other in "kv")]
            packed[f"{front}.in_proj_{kind}"] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            packed[name] = value
    return packed
