"""One training step as diffusers' `train_dreambooth_lora_sdxl.py` computes it, transcribed independently.

From diffusers' main branch of November 2026, its route without EDM: pictures → VAE → latents · scaling factor, DDPM's
noise at uniform timesteps, both text encoders' last layer but one, `time_ids`, mean squared error on the noise or on v,
the class pictures' loss apart and weighted. One fault is not repeated: the script lays prompts out as [subject, class,
subject, class, ...] beside latents laid out as [subjects..., classes...]; here every row has its own prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

UNET_LAYERS = ["to_k", "to_q", "to_v", "to_out.0"]
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj"]


@dataclass
class PublishedStep:
    """The parts that the script loads from a folder, with LoRA of one rank (alpha = rank) on its layers.

    Args:
        folder: of an SDXL in diffusers' form.
        rank: of the adapters.
        trains_text: whether the text encoders have adapters too.
    """

    folder: Path
    rank: int
    trains_text: bool = False
    parts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.schedule = DDPMScheduler.from_pretrained(self.folder, subfolder="scheduler")
        self.vae = AutoencoderKL.from_pretrained(self.folder, subfolder="vae")
        self.tokenizers = [
            CLIPTokenizer.from_pretrained(self.folder, subfolder=f"tokenizer{end}") for end in ("", "_2")
        ]
        self.parts = {
            "unet": UNet2DConditionModel.from_pretrained(self.folder, subfolder="unet"),
            "text_encoder": CLIPTextModel.from_pretrained(self.folder, subfolder="text_encoder"),
            "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(self.folder, subfolder="text_encoder_2"),
        }
        for part in (self.vae, *self.parts.values()):
            part.requires_grad_(False)
        self._add_lora("unet", UNET_LAYERS)
        if self.trains_text:
            self._add_lora("text_encoder", TEXT_LAYERS)
            self._add_lora("text_encoder_2", TEXT_LAYERS)

    def _add_lora(self, part: str, layers: Sequence[str]) -> None:
        config = LoraConfig(
            r=self.rank, lora_alpha=self.rank, init_lora_weights="gaussian", target_modules=list(layers)
        )
        self.parts[part].add_adapter(config)

    def lora(self, part: str) -> dict[str, Tensor]:
        """Layer and matrix -> the trained parameter of a part."""
        return {
            name.replace(".default.weight", ""): parameter
            for name, parameter in self.parts[part].named_parameters()
            if "lora_" in name
        }

    def loss(
        self,
        pictures: Sequence[Path],
        prompts: Sequence[str],
        drawn: Mapping[str, Tensor],
        prior_weight: float | None = None,
    ) -> Tensor:
        """The loss of a step, to be differentiated.

        Args:
            pictures: of the size that is trained at; with prior preservation the second half shows the class.
            prompts: one for each.
            drawn: what the script draws: `latent_noise`, `noise`, `timesteps`, a row for each picture.
            prior_weight: of the class pictures' loss; None: without prior preservation.
        """
        pixels = torch.stack([pixels_of(path) for path in pictures])
        height, width = pixels.shape[-2:]
        posterior = self.vae.encode(pixels).latent_dist
        latents = (posterior.mean + posterior.std * drawn["latent_noise"]) * self.vae.config.scaling_factor
        noise, timesteps = drawn["noise"], drawn["timesteps"]
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        # original size, top left corner of the crop, target size
        time_ids = torch.tensor([[height, width, 0, 0, height, width]] * len(pictures), dtype=torch.float32)
        embeds, pooled = self._encoded(prompts)
        conditions = {"time_ids": time_ids, "text_embeds": pooled}
        predicted = self.parts["unet"](noisy, timesteps, embeds, added_cond_kwargs=conditions, return_dict=False)[0]
        if self.schedule.config.prediction_type == "epsilon":
            target = noise
        else:
            target = self.schedule.get_velocity(latents, noise, timesteps)
        if prior_weight is None:
            return F.mse_loss(predicted, target)
        (own, of_class), (own_target, class_target) = predicted.chunk(2), target.chunk(2)
        return F.mse_loss(own, own_target) + prior_weight * F.mse_loss(of_class, class_target)

    def _encoded(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        states, pooled = [], None
        for tokenizer, name in zip(self.tokenizers, ("text_encoder", "text_encoder_2"), strict=True):
            ids = tokenizer(
                list(prompts),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            found = self.parts[name](ids, output_hidden_states=True, return_dict=False)
            pooled = found[0]
            states.append(found[-1][-2])
        return torch.cat(states, dim=-1), pooled


def pixels_of(path: Path) -> Tensor:
    """A picture as the VAE takes it, (3, H, W) in [-1, 1]."""
    values = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255
    return (torch.from_numpy(values).permute(2, 0, 1) - 0.5) / 0.5
