"""Pictures from prompts and seeds, in batches; `mosgoat dreambooth generate` is in `generate_command`.

B pictures; C, h, w: of a latent; T text tokens; D width of the embeddings, P of the pooled one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from common.errors import UserError
from dreambooth.model import SdxlBase, decode, encode_prompts, pipeline_of

_PROMPTS_AT_ONCE = 32
Embedded = Mapping[str, tuple[Tensor, Tensor]]  # prompt -> its embeddings (T, D) and pooled embedding (P,)


@dataclass(frozen=True)
class PictureJob:
    """A picture to be made.

    Args:
        prompt: what it is to show.
        seed: of its noise.
    """

    prompt: str
    seed: int


def generate(
    base: SdxlBase,
    jobs: Sequence[PictureJob],
    *,
    steps: int = 50,
    guidance: float = 5.0,
    size: int | None = None,
    batch_size: int = 4,
    embedded: Embedded | None = None,
) -> Iterator[Image.Image]:
    """Make pictures one batch at a time, in the order of the jobs.

    Every picture's noise comes from its own seed, drawn in float32 on the CPU: batches, devices and adapters change
    nothing about it, and a picture is the same in any batch but for rounding. Nothing is drawn from PyTorch's global
    generator. Modules in training mode are put in evaluation mode for the while of a batch.

    Args:
        base: with its VAE, and with its text encoders unless `embedded` is given; live adapters stay on.
        jobs: the pictures.
        steps: of the model's own sampler.
        guidance: scale of classifier-free guidance; up to 1 there is none.
        size: side in pixels; none given: what the model was made for.
        batch_size: pictures at once.
        embedded: from `embed_prompts`, where the text encoders have been released since.

    Yields:
        RGB pictures of `size` × `size`.

    Raises:
        UserError: `size` does not suit the model, or it computed something that is no number.
    """
    side = size_for(base, size)
    if embedded is None and jobs:
        embedded = embed_prompts(base, [job.prompt for job in jobs])
    for start in range(0, len(jobs), batch_size):
        yield from _batch(base, jobs[start : start + batch_size], steps, guidance, side, embedded or {})


def size_for(base: SdxlBase, size: int | None) -> int:
    """`size`, or what the model was made for.

    Raises:
        UserError: the UNet cannot make pictures of that size.
    """
    side = base.image_size if size is None else size
    multiple = base.size_multiple
    if side < multiple or side % multiple:
        near = max(multiple, round(side / multiple) * multiple)
        raise UserError(f"size={side} is not a multiple of {multiple} pixels, which the model needs; use {near}")
    return side


@torch.no_grad()
def embed_prompts(base: SdxlBase, prompts: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """What `generate` needs of prompts, so that the text encoders can be released before it.

    Args:
        base: with its text encoders.
        prompts: any number; the empty prompt is added, which guidance leads away from.
    """
    texts = list(dict.fromkeys([*prompts, ""]))
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for start in range(0, len(texts), _PROMPTS_AT_ONCE):
        part = texts[start : start + _PROMPTS_AT_ONCE]
        with base.autocast():
            encoded = encode_prompts(base, part)
        found |= dict(zip(part, zip(encoded.embeds, encoded.pooled, strict=True), strict=True))
    if base.zero_empty_prompt:
        embeds, pooled = found[""]
        found[""] = (torch.zeros_like(embeds), torch.zeros_like(pooled))
    return found


def initial_noise(base: SdxlBase, seed: int, side: int) -> tuple[Tensor, torch.Generator]:
    """The noise that a picture starts from, (C, h, w) float32, and the generator for what its sampler draws later."""
    generator = torch.Generator().manual_seed(seed)
    shape = (base.latent_channels, side // base.vae_factor, side // base.vae_factor)
    return torch.randn(shape, generator=generator), generator


@torch.no_grad()
def _batch(
    base: SdxlBase, jobs: Sequence[PictureJob], steps: int, guidance: float, side: int, embedded: Embedded
) -> list[Image.Image]:
    dtype, device = next(base.unet.parameters()).dtype, base.device

    def stacked(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = [embedded[prompt] for prompt in prompts]
        embeds, pooled = (torch.stack(part).to(device, dtype) for part in zip(*rows, strict=True))
        return embeds, pooled

    embeds, pooled = stacked([job.prompt for job in jobs])
    no_embeds, no_pooled = stacked([""] * len(jobs))
    drawn = [initial_noise(base, job.seed, side) for job in jobs]
    pipeline = pipeline_of(base)
    pipeline.set_progress_bar_config(disable=True)
    training = [module for module in base.unet.modules() if module.training]
    base.unet.eval()
    try:
        with base.autocast():
            latents = pipeline(
                prompt_embeds=embeds,
                pooled_prompt_embeds=pooled,
                negative_prompt_embeds=no_embeds,
                negative_pooled_prompt_embeds=no_pooled,
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=side,
                width=side,
                latents=torch.stack([noise for noise, _ in drawn]).to(device, dtype),
                generator=[generator for _, generator in drawn],
                output_type="latent",
            ).images
    finally:
        for module in training:
            module.training = True
    if not latents.isfinite().all():
        raise UserError(
            "the model computed something that is no number, so that there is no picture; has its training diverged? "
            "Use an earlier checkpoint, or another precision"
        )
    # one after another: the VAE needs far more memory for a picture than the UNet
    return [_to_image(decode(base, latent[None])[0]) for latent in latents]


def _to_image(picture: Tensor) -> Image.Image:
    pixels = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8)  # (3, H, W) in [0, 1] -> (H, W, 3)
    return Image.fromarray(pixels.cpu().numpy())
