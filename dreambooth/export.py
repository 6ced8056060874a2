"""What `mosgoat export` needs of this pipeline."""

from __future__ import annotations

from pathlib import Path

from common.export import Adapted
from dreambooth.model_run import load_run, save_merged

__all__ = ["load_adapted", "save_merged"]


def load_adapted(run: Path) -> Adapted:
    """A finished run's models with their adapters: `unet`, and `text_encoder`, `text_encoder_2` where trained.

    Raises:
        UserError: the run cannot be opened.
    """
    return Adapted({str(name): adapted for name, adapted in load_run(run).adapters.items()})
