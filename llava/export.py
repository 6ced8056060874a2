"""What `mosgoat export` needs of this pipeline."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.export import Adapted
from llava.model_run import load_run, read_recipe, save_merged

__all__ = ["load_adapted", "save_merged"]


def load_adapted(run: Path) -> Adapted:
    """A finished run's model with its adapter.

    Raises:
        UserError: the run has no adapter, or cannot be opened.
    """
    if read_recipe(run).stage == "pretrain":
        raise UserError(f"{run} trained the projector alone; its projector.safetensors is what there is to export")
    return Adapted({"llava": load_run(run).model})
