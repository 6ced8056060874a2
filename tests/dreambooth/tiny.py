"""An SDXL of a few thousand parameters, written the way the real one lies on the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.common.adapters.sdxl import UNET

IMAGE_SIZE, VAE_FACTOR, LATENT_CHANNELS = 16, 2, 4
TEXT_TOKENS, POOLED_WIDTH = 77, 16
TEXT_WIDTHS = (12, 20)  # of the two encoders: by these diffusers tells them apart in a single file
START, END = "<|startoftext|>", "<|endoftext|>"


def tiny_sdxl(directory: Path, *, prediction_type: str = "epsilon", seed: int = 1) -> Path:
    """Write a whole SDXL pipeline of fixed random weights to `directory`, in diffusers' form.

    Pictures of 16 px, latents (4, 8, 8) of a VAE with factor 2, 77 tokens that are letters, embeddings 32 wide of
    two text encoders, pooled 16 wide, and the block structure of the real UNet.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole = tiny_pipeline(make_tokenizer(directory / "words"), prediction_type)
    whole.save_pretrained(directory, safe_serialization=True)
    return directory


def tiny_pipeline(tokenizer: CLIPTokenizer, prediction_type: str = "epsilon") -> StableDiffusionXLPipeline:
    """The pipeline with random weights from torch's generator."""
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=LATENT_CHANNELS,
        sample_size=IMAGE_SIZE,
        scaling_factor=0.13025,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type=prediction_type,
        timestep_spacing="leading",
        steps_offset=1,
        interpolation_type="linear",
        use_karras_sigmas=False,
    )
    first, second = (text_config(len(tokenizer), tokenizer, width) for width in TEXT_WIDTHS)
    return StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(first).eval(),
        text_encoder_2=CLIPTextModelWithProjection(second).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(**UNET).eval(),
        scheduler=scheduler,
    )


def text_config(vocabulary: int, tokenizer: Any, width: int) -> CLIPTextConfig:
    """Of a text encoder; ids of its own vocabulary, or every prompt would be pooled to the same vector."""
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=POOLED_WIDTH,
        max_position_embeddings=TEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=2.0,
    )


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer without merges, so that every letter is a token; its two files go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=TEXT_TOKENS, pad_token=END)
