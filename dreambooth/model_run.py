"""A finished DreamBooth run on the disk: written, opened again, and merged into a pipeline that diffusers opens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common.adapters.files import load_adapter, save_adapter
from common.config import Precision
from common.errors import UserError
from common.export import require_empty, require_mergeable
from common.files import write_json
from common.recipes import load
from common.reporting.runs import read_json, require_run_of
from dreambooth.config import DreamboothRecipe, recipe_problems
from dreambooth.model_base import TEXT_ENCODERS, Component, SdxlBase, load_model, pipeline_of

ABOUT_FILE = "dreambooth.json"
ADAPTER = "adapter"


def save_run(base: SdxlBase, run_path: str | Path, **about: Any) -> None:
    """Write what was trained, and what it was trained on.

    `adapter/unet/`, and `adapter/text_encoder/` and `adapter/text_encoder_2/` where they were trained, in PEFT's
    format; `dreambooth.json` with the base's fingerprint and `about`.

    Args:
        base: with its adapters.
        run_path: the run directory.
        about: what is known of the subject: `subject`, `class_word`, `token`.
    """
    path = Path(run_path)
    (path / ADAPTER).mkdir(parents=True, exist_ok=True)
    for name, adapted in base.adapters.items():
        save_adapter(adapted, path / ADAPTER / name)
    write_json(path / ABOUT_FILE, {**about, "components": list(base.adapters), "base_fingerprint": base.fingerprint})


def read_recipe(path: Path) -> DreamboothRecipe:
    """The recipe of a run directory.

    Raises:
        UserError: it is no run, one of another pipeline, or one that did not finish.
    """
    require_run_of(path, "dreambooth", ABOUT_FILE)
    return load(path / "config.yaml", DreamboothRecipe, problems=recipe_problems)


def read_about(path: Path) -> dict[str, Any]:
    """What `save_run` noted of a run: `subject`, `class_word`, `token`, `components`, `base_fingerprint`.

    Raises:
        UserError: the file is missing or damaged.
    """
    about = read_json(path / ABOUT_FILE) if (path / ABOUT_FILE).is_file() else None
    if not isinstance(about, dict) or not isinstance(about.get("components"), list):
        raise UserError(f"{path / ABOUT_FILE} is missing or damaged; did the run finish?")
    return about


def load_run(
    run_path: str | Path, *, device: torch.device | str = "cpu", precision: Precision | None = None
) -> SdxlBase:
    """SDXL with what a finished run has trained, frozen and in evaluation mode.

    Args:
        run_path: the run directory, with `config.yaml` and what `save_run` wrote.
        device: where the model goes.
        precision: of the frozen weights; none given: that of the training.

    Raises:
        UserError: something is missing or damaged, does not fit, or the base is not the one trained on.
    """
    path = Path(run_path)
    recipe = read_recipe(path)
    base = load_model(recipe.model, precision=precision or recipe.train.precision, device=device)
    put_adapter(base, path)
    return base


def put_adapter(base: SdxlBase, path: Path) -> None:
    """Put what a run has trained onto a base that is loaded already and has no adapter, in place.

    Raises:
        UserError: something is missing or damaged, does not fit, or the base is not the one trained on.
    """
    assert not base.adapters, "take the old adapter off first"
    about = read_about(path)
    if about.get("base_fingerprint") != base.fingerprint:
        raise UserError(
            f"the adapter of {path} was trained on another model than this one (fingerprint "
            f"{str(about.get('base_fingerprint'))[:8]} there, {base.fingerprint[:8]} here); the model section of "
            f"{path / 'config.yaml'} must lead to the weights and the prediction_type that it was trained on"
        )
    encoders = base.text_encoders or (None, None)
    modules: Mapping[Component, Any] = {"unet": base.unet, **dict(zip(TEXT_ENCODERS, encoders, strict=True))}
    for name, module in modules.items():
        if name in about["components"]:
            base.adapters[name] = load_adapter(module, path / ADAPTER / name)
            module.requires_grad_(False).eval()
    assert set(base.adapters) == set(about["components"]), "the text encoders have been released"


def take_adapter_off(base: SdxlBase) -> None:
    """Make the base what it was before `put_adapter` or `prepare_training`, in place."""
    for adapted in base.adapters.values():
        adapted.base_model.unload()
    base.adapters.clear()


def save_merged(run_path: str | Path, directory: str | Path) -> None:
    """Write a run as one pipeline that stock diffusers opens, the adapters merged into its weights.

    Args:
        run_path: a finished run.
        directory: made if absent; must be empty.

    Raises:
        UserError: the run's method routes tokens and cannot be merged, or the run cannot be opened.
    """
    path, directory = Path(run_path), Path(directory)
    require_mergeable(path, read_recipe(path).adapter.method, "mosgoat dreambooth generate")
    require_empty(directory)
    base = load_run(path)
    for adapted in base.adapters.values():
        adapted.merge_and_unload(safe_merge=True)
    pipeline_of(base).save_pretrained(directory, safe_serialization=True)
