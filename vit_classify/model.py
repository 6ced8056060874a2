"""The CLIP classifier: load the base, put the adapter on, save and load a finished run.

B batch, S image size in pixels, C classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from peft import PeftModel
from torch import Tensor, nn

from common.adapters import attach
from common.adapters.files import load_adapter, save_adapter
from common.config import AdapterConfig, Method, Precision
from common.errors import UserError
from common.files import write_json
from common.recipes import load
from common.weights import write_tensors
from vit_classify.attention import split_attention
from vit_classify.base import Base, find_base, load_clip, load_tower
from vit_classify.checkpoint import load_strictly, read_tensors
from vit_classify.config import TARGET_MODULES, ModelConfig, VitRecipe, recipe_problems
from vit_classify.head import LinearHead, ZeroShotHead, read_patch_tokens, zero_shot_weight

__all__ = ["VitClassifier", "load_model", "load_run", "prepare_training", "save_run"]


class VitClassifier(nn.Module):
    """A vision tower and a head.

    Args:
        tower: open_clip's `VisionTransformer` with split attention, or a `PeftModel` of it.
        head: turns the tower's output into logits.
        image_size: S.
        mean: of each colour channel of the pictures, which are in [0, 1] before.
        std: standard deviation of each colour channel.
        base_hash: SHA-256 of the tower as it was loaded.
    """

    def __init__(
        self,
        tower: nn.Module,
        head: ZeroShotHead | LinearHead,
        *,
        image_size: int = 224,
        mean: Sequence[float] = open_clip.OPENAI_DATASET_MEAN,
        std: Sequence[float] = open_clip.OPENAI_DATASET_STD,
        base_hash: str = "",
    ) -> None:
        super().__init__()
        self.tower = tower
        self.head = head
        self.image_size = image_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.base_hash = base_hash
        # what `prepare_training` did: decides what `save_run` writes and how the forward computes
        self.method: Method | None = None
        self.precision: Precision = "float32"

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (B, C) float32 of normalised pictures (B, 3, S, S) float32."""
        autocast: contextlib.AbstractContextManager = contextlib.nullcontext()
        if self.precision == "bf16":  # the frozen weights are bfloat16, so that this is no choice of the caller
            autocast = torch.autocast(pixel_values.device.type, torch.bfloat16)
        with autocast:
            return self.head(self.tower(pixel_values))


def load_model(
    config: ModelConfig,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> VitClassifier:
    """Load the base, split its attention and build the head; everything is frozen, in float32.

    Args:
        config: the model section of a recipe.
        class_names: words for the C classes, in the order of the labels.
        templates: prompts with `{}` for the class; used by the zero-shot head.
        seed: of the start of a linear head.
        device: where the prompts are encoded and where the classifier ends up.

    Raises:
        UserError: the base is not there, damaged, of another architecture or activation.
    """
    if not class_names:
        raise UserError("data: there is no class to tell apart")
    base = find_base(config)
    head: ZeroShotHead | LinearHead
    if config.head == "linear":
        tower = read_patch_tokens(load_tower(base))
        head = LinearHead(tower.get_parameter("class_embedding").numel(), class_names, templates, seed)
    else:
        if not templates:
            raise UserError("data.templates is empty; a zero-shot head needs at least one prompt")
        clip = load_clip(base).to(device).eval()
        weight = zero_shot_weight(clip, _tokenizer(base), class_names, templates)
        tower, head = clip.get_submodule("visual"), ZeroShotHead(weight, class_names, templates)
    classifier = _assemble(tower, head, base)
    return classifier.requires_grad_(False).to(device).eval()


def prepare_training(
    classifier: VitClassifier,
    adapter: AdapterConfig,
    precision: Precision = "float32",
    gradient_checkpointing: bool = False,
) -> None:
    """Make ready for training, in place: attach the adapter (or unfreeze the tower), unfreeze a linear head.

    Args:
        classifier: from `load_model`.
        adapter: what is trained; `full`: the whole tower, `linear_probe`: only the head.
        precision: with `bf16` the frozen linear layers become bfloat16 and the forward runs under autocast;
            all that is trained stays float32.
        gradient_checkpointing: recompute each residual block in the backward.

    Raises:
        UserError: the adapter does not fit the tower.
    """
    tower = classifier.tower
    classifier.method, classifier.precision = adapter.method, precision
    classifier.requires_grad_(False)
    linears = [module for module in tower.modules() if isinstance(module, nn.Linear)]
    if gradient_checkpointing:
        transformer: Any = tower.get_submodule("transformer")
        transformer.grad_checkpointing = True  # open_clip's own, non-reentrant
    if adapter.method == "full":
        tower.requires_grad_(True)
    elif adapter.method != "linear_probe":
        # before the cast: starts made from the weights' SVD are to see them in float32
        classifier.tower = attach(tower, adapter, TARGET_MODULES)
    if isinstance(classifier.head, LinearHead):
        classifier.head.requires_grad_(True)
    if precision == "bf16":
        for linear in linears:
            if not any(parameter.requires_grad for parameter in linear.parameters()):
                linear.to(torch.bfloat16)


def save_run(classifier: VitClassifier, run_dir: str | Path) -> None:
    """Write what was trained: `adapter/` or `model.safetensors`, and the head.

    The head's files also name the classes and hold the hash of the base, so that `load_run` needs no data
    and notices another base.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    head, tower = classifier.head, classifier.tower
    if isinstance(tower, PeftModel):
        save_adapter(tower, run_dir / "adapter")
    elif classifier.method == "full":
        write_tensors(run_dir / "model.safetensors", tower.state_dict())
    write_tensors(run_dir / "head.safetensors", head.state_dict())
    about = {
        "kind": head.kind,
        "class_names": head.class_names,
        "templates": head.templates,
        "base_hash": classifier.base_hash,
    }
    write_json(run_dir / "head.json", about)


def load_run(path: str | Path, *, device: torch.device | str = "cpu") -> VitClassifier:
    """The classifier of a finished run, frozen, in float32: its base again, with what was trained on it.

    Args:
        path: the run directory, with `config.yaml` and what `save_run` wrote.
        device: where the classifier ends up.

    Raises:
        UserError: something is missing or damaged, does not fit, or the base is not the one trained on.
    """
    path = Path(path)
    recipe = load(path / "config.yaml", VitRecipe, problems=recipe_problems)
    try:
        about = json.loads((path / "head.json").read_text())
        kind, class_names, templates = about["kind"], list(about["class_names"]), list(about["templates"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / 'head.json'} cannot be read ({error}); did the run finish?") from error
    base = find_base(recipe.model)
    tower = load_tower(base)
    weights = read_tensors(path / "head.safetensors")
    head: ZeroShotHead | LinearHead
    if kind == "linear":
        width = read_patch_tokens(tower).get_parameter("class_embedding").numel()
        head = LinearHead(width, class_names, templates)
    else:
        embed_dim = tower.get_parameter("proj").shape[1]
        head = ZeroShotHead(torch.zeros(len(class_names), embed_dim), class_names, templates)
    load_strictly(head, weights, path / "head.safetensors")
    classifier = _assemble(tower, head, base)
    if about.get("base_hash") != classifier.base_hash:
        raise UserError(
            f"the run {path} was trained on other weights than {base.weights} holds now; "
            f"model.name and model.weights in {path / 'config.yaml'} must lead to the same base"
        )
    classifier.method = recipe.adapter.method
    if classifier.method == "full":
        load_strictly(classifier.tower, read_tensors(path / "model.safetensors"), path / "model.safetensors")
    elif classifier.method != "linear_probe":
        classifier.tower = load_adapter(classifier.tower, path / "adapter")
    return classifier.requires_grad_(False).to(device).eval()


def _assemble(tower: nn.Module, head: ZeroShotHead | LinearHead, base: Base) -> VitClassifier:
    visual: Any = split_attention(tower)
    height, width = visual.image_size
    if height != width:
        raise UserError(f"model.name={base.name} takes pictures of {height}x{width}; only squares are supported")
    mean, std = base.preprocess["mean"], base.preprocess["std"]
    return VitClassifier(tower, head, image_size=height, mean=mean, std=std, base_hash=_hash(tower))


def _tokenizer(base: Base) -> open_clip.SimpleTokenizer:
    try:
        return open_clip.get_tokenizer(base.open_clip_name)
    except Exception as error:
        raise UserError(
            f"model.name={base.name}: its tokenizer cannot be loaded ({error}); fetch it into the Hub's cache first"
        ) from error


def _hash(tower: nn.Module) -> str:
    """SHA-256 of a tower's weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
