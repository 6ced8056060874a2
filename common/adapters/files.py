"""The folder of an adapter in PEFT's format: written whole, read strictly."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
from peft import PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError, safe_open

from common.errors import UserError
from common.files import share_as_usual
from common.words import counted

WEIGHTS_FILE = "adapter_model.safetensors"


def save_adapter(model: PeftModel, directory: Path) -> None:
    """Write the adapter and the modules saved with it to `directory`, in the place of what was there."""
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    # embeddings are never trained here; PEFT would save them for an adapter on the output head, and ask the Hub
    model.save_pretrained(str(temporary), save_embedding_layers=False)
    (temporary / "README.md").unlink(missing_ok=True)  # PEFT's model card, with nothing filled in
    share_as_usual(temporary)
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(temporary, directory)


def load_adapter(model: Any, directory: Path) -> PeftModel:
    """Put a saved adapter on its base model; every tensor must be there, fit and be finite.

    Args:
        model: the base model.
        directory: from `save_adapter`.

    Raises:
        UserError: the adapter is missing, damaged, or of another model.
    """
    file = directory / WEIGHTS_FILE
    if not file.is_file():  # PEFT would go on and ask the Hub, or open a pickle
        raise UserError(f"{file} is missing; did the run finish?")
    try:
        with safe_open(file, framework="pt") as opened:
            saved = set(opened.keys())
            broken = [name for name in sorted(saved) if not opened.get_tensor(name).isfinite().all()]
    except SafetensorError as error:
        raise UserError(f"{file} is damaged or incomplete: {error}") from error
    _require_config(directory / "adapter_config.json")
    if broken:
        raise UserError(f"{file} is damaged: {counted(len(broken), 'tensor')} not finite, the first: {broken[0]}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error below
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # PEFT asks transformers for it
            # PEFT looks for layers of the names under which AdaLoRA notes the ranks that are left
            warnings.filterwarnings("ignore", "The following rank_pattern keys did not match", RuntimeWarning)
            adapted = PeftModel.from_pretrained(model, str(directory))
    except UserError as error:  # which says already what does not fit
        raise UserError(f"{directory}: {error}") from error
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{directory} does not fit the base: {str(error).strip()}") from error
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if saved != wanted:  # PEFT only warns of the one and drops the other
        missing, unexpected = sorted(wanted - saved), sorted(saved - wanted)
        raise UserError(f"{file} does not fit the base: missing {missing[:4]}, unexpected {unexpected[:4]}")
    return adapted


def _require_config(file: Path) -> None:
    """Raise `UserError` unless `file` is the configuration of an adapter of a kind that is known here."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing; was the folder copied whole?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}; was it copied whole?") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise UserError(
            f"{file}: peft_type={kind!r} is no kind of adapter that mosgoat or PEFT {peft.__version__} knows; was the "
            "file changed, or written by a newer version?"
        )
