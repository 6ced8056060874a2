"""The two classification heads, and the change to the tower that each needs.

B batch, T patch tokens, D width of the tower, P width of the joint embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError
from vit_classify.config import Head


class ZeroShotHead(nn.Module):
    """Cosine similarity to frozen text features, times the logit scale (Radford et al. 2021; Ilharco et al.).

    Args:
        weight: (C, P) float32: the unit text features times `logit_scale.exp()`.
        class_names: C words or phrases.
        templates: the prompts, `{}` for the class.
    """

    kind: ClassVar[Head] = "zero_shot"

    def __init__(self, weight: Tensor, class_names: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__()
        assert weight.shape[0] == len(class_names)
        self.class_names, self.templates = list(class_names), list(templates)
        self.weight: Tensor
        self.register_buffer("weight", weight)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) float32 of the tower's embeddings (B, P) of any float type."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(features.float(), dim=-1) @ self.weight.T


class LinearHead(nn.Module):
    """A new, trained linear layer on the mean of the patch tokens, without the class token.

    Same as transformers' `CLIPForImageClassification`, which the released code of GOAT uses: the tokens
    come from the last block, before the final layer norm and without the projection; the weight starts
    normal with standard deviation D^-½, the bias at zero.

    Args:
        width: D.
        class_names: C words or phrases.
        templates: kept for the record only.
        seed: of the start values; the global random state is neither used nor changed.
    """

    kind: ClassVar[Head] = "linear"

    def __init__(self, width: int, class_names: Sequence[str], templates: Sequence[str] = (), seed: int = 0) -> None:
        super().__init__()
        self.class_names, self.templates = list(class_names), list(templates)
        start = torch.randn(len(self.class_names), width, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(start * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(len(self.class_names)))

    def forward(self, features: tuple[Tensor, Tensor]) -> Tensor:
        """Logits (B, C) float32 of the tower's output: pooled (unused) and patch tokens (B, T, D)."""
        _, tokens = features
        with torch.autocast(tokens.device.type, enabled=False):
            return F.linear(tokens.float().mean(dim=1), self.weight, self.bias)


def read_patch_tokens(tower: nn.Module) -> nn.Module:
    """Make an open_clip tower return its patch tokens as `LinearHead` wants them, in place.

    What is not used is dropped, so that full fine-tuning leaves no weight without a gradient (which DDP
    would not accept).

    Raises:
        UserError: the tower has no class token of its own to leave out.
    """
    if getattr(tower, "pool_type", None) != "tok":
        raise UserError("model.head=linear needs a tower with a class token; use model.head=zero_shot")
    visual: Any = tower
    visual.output_tokens, visual.ln_post, visual.proj = True, nn.Identity(), None
    return tower


def zero_shot_weight(
    model: nn.Module, tokenizer: open_clip.SimpleTokenizer, class_names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """The weight of a zero-shot head: the prompts' features, normalised, averaged, normalised, scaled.

    Args:
        model: an open_clip model with both towers, on the device that is to do the work.
        tokenizer: the model's own.
        class_names: C words or phrases.
        templates: at least one prompt, with `{}` for the class.

    Returns:
        (C, P) float32, on the model's device.
    """
    prompts = [lambda words, text=text: text.replace("{}", words) for text in templates]
    classes_at_once = max(1, 256 // len(templates))
    device = next(model.parameters()).device
    with torch.inference_mode():
        unit = open_clip.build_zero_shot_classifier(
            model, tokenizer, list(class_names), prompts, num_classes_per_batch=classes_at_once, device=device
        )  # (P, C)
        weight = (unit.T * model.get_parameter("logit_scale").exp()).float().contiguous()
    return weight.clone()  # an inference tensor could not be used in training
