"""SDXL as the pipeline holds it: UNet, VAE, two text encoders and their tokenizers, the noise schedule."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import xxhash
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import PeftModel
from torch import Tensor, nn

from common.cache import fingerprint_of
from common.config import Precision
from common.errors import UserError
from common.words import first_line
from dreambooth.config import Attention, ModelConfig, PredictionType
from dreambooth.model_files import open_pipeline

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
Component = Literal["unet", "text_encoder", "text_encoder_2"]
TEXT_ENCODERS: tuple[Component, Component] = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class LatentScale:
    """How the VAE's latents relate to those of the UNet, which have a standard deviation of about 1.

    Args:
        factor: the VAE's scaling factor.
        mean: of each channel, subtracted before; empty: 0.
        std: of each channel, divided by; empty: 1.
    """

    factor: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def to_unet(self, latents: Tensor) -> Tensor:
        """The VAE's latents (B, C, h, w) in the UNet's units."""
        return (latents - self._column(self.mean, 0.0, latents)) * self.factor / self._column(self.std, 1.0, latents)

    def to_vae(self, latents: Tensor) -> Tensor:
        """The UNet's latents (B, C, h, w) in the VAE's units."""
        return latents * self._column(self.std, 1.0, latents) / self.factor + self._column(self.mean, 0.0, latents)

    def _column(self, values: tuple[float, ...], default: float, like: Tensor) -> Tensor:
        return torch.tensor(values or (default,), device=like.device, dtype=like.dtype).view(1, -1, 1, 1)


@dataclass
class SdxlBase:
    """An SDXL model, frozen but for adapters.

    Args:
        unet: diffusers' UNet; adapters lie inside it.
        vae: in float32; None where it has been released.
        text_encoders: CLIP's two; None where they have been released.
        tokenizers: of the two.
        scheduler_config: of the sampler that the model brings, with its class as `_class_name`.
        prediction_type: what the UNet predicts.
        fingerprint: tells models apart, whatever the precision.
        precision: of the frozen weights.
        latent_scale: see there.
        latent_channels: C.
        vae_factor: pixels on a side for each latent.
        size_multiple: a picture's sides, in pixels, are multiples of it.
        image_size: side of the pictures it was made for, in pixels.
        zero_empty_prompt: whether the embeddings of an empty negative prompt are zeros (SDXL: yes).
        adapters: component -> PEFT's wrapper of it, whose adapter is trained or was loaded.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL | None
    text_encoders: tuple[Any, Any] | None
    tokenizers: tuple[Any, Any]
    scheduler_config: Mapping[str, Any]
    prediction_type: PredictionType
    fingerprint: str
    precision: Precision
    latent_scale: LatentScale
    latent_channels: int
    vae_factor: int
    size_multiple: int
    image_size: int
    zero_empty_prompt: bool = True
    adapters: dict[Component, PeftModel] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Of the UNet."""
        return next(self.unet.parameters()).device

    @property
    def trains_text(self) -> bool:
        """Whether the text encoders have adapters."""
        return "text_encoder" in self.adapters

    def alphas_cumprod(self) -> Tensor:
        """ᾱ of the noise schedule at each timestep, (timesteps,) float32: the share of signal in the variance."""
        return DDPMScheduler.from_config(dict(self.scheduler_config)).alphas_cumprod.float().clone()

    def autocast(self) -> torch.autocast:
        """The context in which the model computes outside of training."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def release(self, *, vae: bool = False, text_encoders: bool = False) -> None:
        """Give back the memory of parts that have done their work."""
        self.vae = None if vae else self.vae
        self.text_encoders = None if text_encoders else self.text_encoders
        gc.collect()  # modules refer to themselves
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def load_model(
    config: ModelConfig, *, precision: Precision = "float32", device: torch.device | str = "cpu"
) -> SdxlBase:
    """Load SDXL, frozen and in evaluation mode; the VAE always in float32.

    Args:
        config: the model section of a recipe.
        precision: of UNet and text encoders.
        device: where it goes.

    Raises:
        UserError: the model is not there, damaged or no SDXL, or the attention is not to be had.
    """
    pipeline = open_pipeline(config, DTYPES[precision])
    unet, vae = pipeline.unet, pipeline.vae
    if getattr(unet.config, "addition_embed_type", None) != "text_time":
        raise UserError(f"model.name={config.name} is a pipeline with another UNet than SDXL's; give an SDXL model")
    scheduler_config = dict(pipeline.scheduler.config)
    prediction_type = config.prediction_type or scheduler_config.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"model.name={config.name} predicts {prediction_type}, which is not supported; epsilon and v_prediction are"
        )
    scheduler_config["prediction_type"] = prediction_type
    scheduler_config.setdefault("_class_name", type(pipeline.scheduler).__name__)
    text_encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    modules = {"unet": unet, "vae": vae, **dict(zip(TEXT_ENCODERS, text_encoders, strict=True))}
    fingerprint = _fingerprint(modules, scheduler_config)
    for module in modules.values():
        module.requires_grad_(False).eval().to(device)
    set_attention(unet, config.attention)
    vae_factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return SdxlBase(
        unet=unet,
        vae=vae,
        text_encoders=text_encoders,
        tokenizers=(pipeline.tokenizer, pipeline.tokenizer_2),
        scheduler_config=scheduler_config,
        prediction_type=prediction_type,
        fingerprint=fingerprint,
        precision=precision,
        latent_scale=LatentScale(
            vae.config.scaling_factor,
            tuple(getattr(vae.config, "latents_mean", None) or ()),
            tuple(getattr(vae.config, "latents_std", None) or ()),
        ),
        latent_channels=vae.config.latent_channels,
        vae_factor=vae_factor,
        size_multiple=vae_factor * 2 ** (len(unet.config.block_out_channels) - 1),
        image_size=unet.config.sample_size * vae_factor,
        zero_empty_prompt=bool(pipeline.config.force_zeros_for_empty_prompt),
    )


def pipeline_of(base: SdxlBase) -> StableDiffusionXLPipeline:
    """Diffusers' own pipeline of the same modules, with the model's own sampler; live adapters stay on.

    Parts that were released are None in it. With frozen weights in bf16 its VAE, which is float32, cannot decode the
    UNet's latents by itself: ask for `output_type="latent"` and call `decode`.
    """
    first, second = base.text_encoders or (None, None)
    return StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=base.tokenizers[0],
        tokenizer_2=base.tokenizers[1],
        unet=base.unet,
        scheduler=sampler_of(base),
        force_zeros_for_empty_prompt=base.zero_empty_prompt,
        add_watermarker=False,
    )


def sampler_of(base: SdxlBase) -> Any:
    """A new instance of the sampler that the model brings."""
    import diffusers

    config = dict(base.scheduler_config)
    return getattr(diffusers, config["_class_name"]).from_config(config)


@torch.no_grad()
def decode(base: SdxlBase, latents: Tensor) -> Tensor:
    """Pictures of the UNet's latents, computed in float32.

    Args:
        base: with its VAE.
        latents: (B, C, h, w), any float dtype.

    Returns:
        (B, 3, H, W) float32 in [0, 1], on the VAE's device.
    """
    assert base.vae is not None, "the VAE has been released"
    latents = base.latent_scale.to_vae(latents.to(next(base.vae.parameters()).device, torch.float32))
    with torch.autocast(latents.device.type, enabled=False):
        pictures = base.vae.decode(latents).sample
    return (pictures / 2 + 0.5).clamp(0, 1)


def set_attention(unet: UNet2DConditionModel, attention: Attention) -> None:
    """Make every attention of the UNet compute with one implementation, and make sure that it does.

    Raises:
        UserError: xformers is not installed, or does not work on this machine.
    """
    if attention == "xformers":
        try:
            # `set_attention_backend` has no effect on UNets
            unet.enable_xformers_memory_efficient_attention()
        except Exception as error:  # diffusers raises what its trial run raised
            reason = first_line(error)
            raise UserError(
                f"model.attention=xformers cannot be used here ({reason}); install the extra (pip install "
                "'mosgoat[xformers]') on a machine with an NVIDIA GPU, or use model.attention=sdpa, which is as fast"
            ) from error
    wanted = "XFormersAttnProcessor" if attention == "xformers" else "AttnProcessor2_0"
    found = {type(processor).__name__ for processor in unet.attn_processors.values()}
    if found != {wanted}:
        raise UserError(
            f"model.attention={attention} took no effect: the UNet computes with {', '.join(sorted(found))}"
        )


def _fingerprint(modules: Mapping[str, nn.Module], scheduler_config: Mapping[str, Any]) -> str:
    """A hash of every tensor's name, shape and whole content as bf16, and of the noise schedule.

    Whole: what the VAE and the text encoders made lies in a cache under it, and a model that was trained further
    may differ in a few rows only. SDXL's 3.5 billion parameters take about a second per core in bf16, five in float32.
    """
    digest = xxhash.xxh3_128()
    for part, module in sorted(modules.items()):
        # transformers before 5.6 has `text_model.` in front of the layers of CLIPTextModel
        state = {name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()}
        for name, tensor in sorted(state.items()):
            if name.endswith("position_ids"):  # a count from 0, which some versions keep among the weights
                continue
            digest.update(f"{part} {name} {tuple(tensor.shape)}\n".encode())
            bits = tensor.to(torch.bfloat16).cpu().contiguous().view(torch.int16)  # NumPy knows no bf16
            digest.update(bits.numpy())
    schedule = {
        key: scheduler_config.get(key)
        for key in (
            *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
            *("prediction_type", "rescale_betas_zero_snr"),
        )
    }
    digest.update(fingerprint_of(schedule).encode())
    return digest.hexdigest()
