"""A tiny SDXL pipeline of random weights, with the block structure of the real one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

# the real UNet's structure: three resolutions, two layers each, transformers in the lower two
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16, 16),
    "norm_num_groups": 4,
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 2),
    "use_linear_projection": True,
    "cross_attention_dim": 32,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}
REAL_UNET: dict[str, Any] = UNET | {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "norm_num_groups": 32,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@cache
def _pipeline() -> Any:
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(1)
    # without ids of its own vocabulary every prompt of a tiny CLIP is pooled to the same vector
    text = CLIPTextConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        max_position_embeddings=16,
        bos_token_id=48,
        eos_token_id=49,
        pad_token_id=49,
    )
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, sample_size=8),
        text_encoder=CLIPTextModel(text).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text).eval(),
        tokenizer=None,
        tokenizer_2=None,
        unet=UNet2DConditionModel(**UNET).eval(),
        scheduler=EulerDiscreteScheduler(),
    )


def pipeline() -> Any:
    """A fresh `StableDiffusionXLPipeline` with the same weights every time; its tokenizers are absent."""
    return copy.deepcopy(_pipeline())


def unet_output(unet: nn.Module) -> Tensor:
    """The noise that a UNet, adapted or not, predicts for fixed inputs; (2, 4, 8, 8)."""
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        return unet(
            torch.randn(2, 4, 8, 8, generator=draw),
            torch.tensor([3, 700]),
            torch.randn(2, 7, 32, generator=draw),
            added_cond_kwargs={
                "text_embeds": torch.randn(2, 16, generator=draw),
                "time_ids": torch.randint(64, (2, 6), generator=draw),
            },
        ).sample


def text_output(encoder: nn.Module) -> Tensor:
    """The last hidden state of a text encoder for fixed tokens; (2, 7, 16)."""
    tokens = torch.randint(48, (2, 7), generator=torch.Generator().manual_seed(9))
    tokens[:, -1] = 49
    with torch.no_grad():
        return encoder(tokens, output_hidden_states=True).hidden_states[-1]


def outputs(pipe: Any, components: Sequence[str]) -> dict[str, Tensor]:
    """What each of some components of the pipeline says."""
    return {name: unet_output(pipe.unet) if name == "unet" else text_output(getattr(pipe, name)) for name in components}
