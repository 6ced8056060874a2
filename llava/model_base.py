"""A LLaVA model with all that goes with it, loaded and frozen."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaProcessor, PreTrainedTokenizerBase
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from common.adapters import set_token_mask
from common.config import Precision
from llava.assemble import Parts, build, find_parts
from llava.config import ModelConfig, TemplateName
from llava.conversation import Template, Turn, encode_prompt, stop_ids, template_for


@dataclass
class LlavaBase:
    """A LLaVA model and what turns text and pictures into its inputs.

    Args:
        model: `LlavaForConditionalGeneration`, or a `PeftModel` of it; its unused tower layers are dropped.
        tokenizer: with `<image>` as one special token, and a padding token.
        image_processor: pads a picture to a square with CLIP's mean colour, as LLaVA-1.5 does.
        processor: both, as transformers wants them, for saving.
        image_token_id: the id of `<image>`.
        image_tokens: how many of them stand for one picture (576 for CLIP ViT-L/14-336).
        image_size: side of a picture in pixels, as the tower takes it.
        template: how a conversation becomes text.
        precision: `bf16`: frozen weights are bfloat16 and the forward has to run under `autocast`.
        fingerprint: of the language model's and the tower's weights as they were loaded.
        projector_fingerprint: of the projector's; empty for a new one.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    image_processor: LlavaImageProcessorPil
    processor: LlavaProcessor
    image_token_id: int
    image_tokens: int
    image_size: int
    template: TemplateName
    precision: Precision
    fingerprint: str
    projector_fingerprint: str

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def llava(self) -> Any:
        """The `LlavaForConditionalGeneration` itself, with its adapters in it, without PEFT's wrapper."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @functools.cached_property
    def wording(self) -> Template:
        """The template itself, with the tokenizer's special tokens."""
        return template_for(self.template, self.tokenizer)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens of a conversation up to where the model's next answer begins.

        Args:
            turns: human and gpt by turns, beginning and ending with human.
        """
        return encode_prompt(
            turns, self.wording, self.tokenizer, image_token_id=self.image_token_id, image_tokens=self.image_tokens
        )

    def stops(self) -> list[int]:
        """The tokens at which an answer is over."""
        return stop_ids(self.wording, self.tokenizer)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures as the vision tower takes them, (I, 3, S, S) float32, on the model's device."""
        rgb = [image.convert("RGB") for image in images]
        return self.image_processor(images=rgb, return_tensors="pt")["pixel_values"].to(self.device)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """The context of inference: evaluation mode and no gradients; the model's mode comes back at its end."""
        was_training = self.model.training
        self.model.eval()
        set_token_mask(self.model, None)  # that of the last training batch
        try:
            with torch.inference_mode(), self.autocast():
                yield
        finally:
            self.model.train(was_training)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context a forward runs in: bfloat16 autocast, or none in float32."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()


def load_model(
    config: ModelConfig,
    *,
    template: TemplateName,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
    projector: Path | None = None,
) -> LlavaBase:
    """Load a LLaVA model whole, or out of a tower, a language model and a projector; everything is frozen.

    Tensors go from their files straight to their places. A projector that the recipe does not name is new and drawn
    from PyTorch's global generator.

    Args:
        config: the model section of a recipe.
        template: how a conversation becomes text.
        precision: of the frozen weights; the projector is float32 in any case.
        device: where the model goes.
        projector: a file that replaces the projector of the recipe.

    Raises:
        UserError: something is not there, damaged, or does not fit.
    """
    parts = find_parts(config, projector=projector)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = build(
        parts, quantization=config.quantization, attention=config.attention, dtype=dtype, device=torch.device(device)
    )
    return _with_processor(model, parts, template, precision)


def _with_processor(model: nn.Module, parts: Parts, template: TemplateName, precision: Precision) -> LlavaBase:
    vision, vocabulary = parts.config.vision_config, parts.vocabulary
    strategy, size = parts.config.vision_feature_select_strategy, vision.image_size
    statistics = {key: parts.preprocess[key] for key in ("image_mean", "image_std") if parts.preprocess.get(key)}
    image_processor = LlavaImageProcessorPil(
        do_pad=True,  # with (122, 116, 104), the mean of OpenAI's pictures
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        **statistics,
    )
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=vocabulary.tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=strategy,
        chat_template=vocabulary.tokenizer.chat_template,
        num_additional_image_tokens=1,  # CLS, which "default" drops again: without it one token is missing
    )
    return LlavaBase(
        model=model,
        tokenizer=vocabulary.tokenizer,
        image_processor=image_processor,
        processor=processor,
        image_token_id=vocabulary.image_token_id,
        image_tokens=(size // vision.patch_size) ** 2 + (strategy == "full"),
        image_size=size,
        template=template,
        precision=precision,
        fingerprint=parts.fingerprint,
        projector_fingerprint=parts.projector_fingerprint,
    )
