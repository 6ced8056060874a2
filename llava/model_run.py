"""A finished LLaVA run on the disk: written, opened again, and merged into a model that transformers opens."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper

from common.adapters.files import load_adapter, save_adapter
from common.config import Precision
from common.errors import UserError
from common.export import require_empty, require_mergeable
from common.files import write_json
from common.recipes import load
from common.reporting.runs import require_run_of
from common.weights import write_tensors
from llava.config import LlavaRecipe, recipe_problems
from llava.conversation import Template
from llava.model_base import LlavaBase, load_model
from llava.model_files import read_json_object

ABOUT_FILE = "llava.json"
PROJECTOR_FILE = "projector.safetensors"
ADAPTER = "adapter"


def save_run(base: LlavaBase, run_path: str | Path) -> None:
    """Write what was trained, and what it was trained on.

    `adapter/` in PEFT's format, the projector in it if it was trained; or `projector.safetensors` alone, in
    transformers' names, which `model.projector` of another recipe takes. `llava.json` holds the base's fingerprint.
    """
    path = Path(run_path)
    path.mkdir(parents=True, exist_ok=True)
    if isinstance(base.model, PeftModel):
        save_adapter(base.model, path / ADAPTER)
    else:
        state = base.llava().model.multi_modal_projector.state_dict(prefix="multi_modal_projector.")
        write_tensors(path / PROJECTOR_FILE, state)
    about = {
        "template": base.template,
        "image_token_id": base.image_token_id,
        "image_tokens": base.image_tokens,
        "base_fingerprint": base.fingerprint,
        "projector_fingerprint": base.projector_fingerprint,
    }
    write_json(path / ABOUT_FILE, about)


def load_run(
    run_path: str | Path,
    *,
    device: torch.device | str = "cpu",
    precision: Precision | None = None,
) -> LlavaBase:
    """The model of a finished run, frozen and in evaluation mode: its base again, with what was trained on it.

    Args:
        run_path: the run directory, with `config.yaml` and what `save_run` wrote.
        device: where the model goes.
        precision: of the frozen weights; none given: that of the training.

    Raises:
        UserError: something is missing or damaged, does not fit, or the base is not the one trained on.
    """
    path = Path(run_path)
    return _load(path, read_recipe(path), device, precision)


def read_recipe(path: Path) -> LlavaRecipe:
    """The recipe of a run directory.

    Raises:
        UserError: it is no run, one of another pipeline, or one that did not finish.
    """
    require_run_of(path, "llava", ABOUT_FILE)
    return load(path / "config.yaml", LlavaRecipe, problems=recipe_problems)


def save_merged(run_path: str | Path, directory: str | Path) -> None:
    """Write a run as one model that stock transformers opens, the adapters merged into its weights.

    The folder serves `LlavaForConditionalGeneration.from_pretrained` and `AutoProcessor.from_pretrained`, with the
    run's template as chat template and its stop tokens in the generation configuration. A base that was trained on
    in 4 bit is merged in its original precision, so that answers can differ a little from those of the run.

    Args:
        run_path: a finished run.
        directory: made if absent; must be empty.

    Raises:
        UserError: the run's method routes tokens and cannot be merged, or the run cannot be opened.
    """
    path, directory = Path(run_path), Path(directory)
    recipe = read_recipe(path)
    if recipe.stage == "finetune":
        require_mergeable(path, recipe.adapter.method, "mosgoat llava chat, predict")
    require_empty(directory)
    if recipe.model.quantization != "none":
        note = "merged into the base's original weights, not into those in 4 bit that the adapter was trained on"
        print(f"{path}: {note}; answers can differ a little", file=sys.stderr)
    unquantized = replace(recipe, model=replace(recipe.model, quantization="none"))
    base = _load(path, unquantized, "cpu", None)
    if isinstance(base.model, PeftModel):
        # PEFT's unloading expects a module that was saved whole to be a single layer
        projector = base.llava().model.multi_modal_projector
        if isinstance(projector, ModulesToSaveWrapper):
            base.llava().model.multi_modal_projector = projector.modules_to_save[projector.active_adapters[0]]
        base.model = base.model.merge_and_unload(safe_merge=True)
    llava: Any = base.model
    llava.to(torch.bfloat16 if base.precision == "bf16" else torch.float32)  # the projector was float32
    template = base.wording
    llava.generation_config.eos_token_id = base.stops()
    if template.name != "tokenizer":
        base.processor.chat_template = chat_template(template, base.tokenizer.bos_token)
    llava.save_pretrained(directory)
    base.processor.save_pretrained(directory)


def chat_template(template: Template, bos_token: str | None) -> str:
    """A template as transformers writes it, in Jinja: messages of `user` and `assistant`, pictures before text."""

    def text(value: str) -> str:
        return "{{ " + json.dumps(value) + " }}" if value else ""

    content = (
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content if p.type == 'image' %}<image>\n{% endfor %}"
        "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endif %}"
    )
    return (
        (text(bos_token) if template.bos and bos_token else "")
        + "{% for m in messages %}{% if m.role == 'user' %}"
        + "{% if loop.first %}"
        + text(template.opening)
        + "{% else %}"
        + text(template.between)
        + "{% endif %}"
        + content
        + text(template.head)
        + "{% elif m.role == 'assistant' %}"
        + text(template.answer_prefix)
        + content
        + text(template.end)
        + "{% endif %}{% endfor %}{% if not add_generation_prompt %}"
        + text(template.tail)
        + "{% endif %}"
    )


def _load(path: Path, recipe: LlavaRecipe, device: torch.device | str, precision: Precision | None) -> LlavaBase:
    about = read_json_object(path / ABOUT_FILE)
    pretrained = recipe.stage == "pretrain"
    if pretrained and not (path / PROJECTOR_FILE).is_file():
        raise UserError(f"{path / PROJECTOR_FILE} is missing; did the run finish?")
    base = load_model(
        recipe.model,
        template=recipe.data.template,
        precision=precision or recipe.train.precision,
        device=device,
        projector=path / PROJECTOR_FILE if pretrained else None,
    )
    found = {
        "base_fingerprint": base.fingerprint,
        "image_token_id": base.image_token_id,
        "image_tokens": base.image_tokens,
    }
    if not pretrained:
        found["projector_fingerprint"] = base.projector_fingerprint
    other = [key for key, value in found.items() if about.get(key) != value]
    if other:
        raise UserError(
            f"the run {path} was trained on another base than its recipe leads to now ({', '.join(other)} differ); "
            f"the model section of {path / 'config.yaml'} must name the same files"
        )
    if not pretrained:
        base.model = load_adapter(base.model, path / ADAPTER)
    base.model.requires_grad_(False).eval()
    return base
