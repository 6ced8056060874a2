"""A batch of latents → the loss of denoising, in the form the engine trains.

B samples; R rows: B, or 2 B with prior preservation, the class picture of sample i in row B + i; C, h, w: of a latent;
T text tokens; D width of the embeddings of both text encoders side by side, P of the pooled embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from common.training.order import IGNORED_LABEL
from dreambooth.config import LossConfig, PredictionType
from dreambooth.model import TEXT_ENCODERS, SdxlBase, encode_ids


class DenoisingObjective(nn.Module):
    """What the UNet predicts of the noise in a latent, against what was added, squared.

    Args:
        base: made ready by `prepare_training`.
        loss: the loss section of a recipe.
        prior_weight: of the class pictures' loss, where a batch has any.
    """

    alphas_cumprod: Tensor

    def __init__(self, base: SdxlBase, loss: LossConfig, prior_weight: float = 0.0) -> None:
        super().__init__()
        # registers the weights with the engine; by the names under which they have their own learning rate
        self.unet = base.adapters.get("unet", base.unet)
        if base.trains_text:
            self.text_encoder, self.text_encoder_2 = (base.adapters[name] for name in TEXT_ENCODERS)
        self._base = base
        self._loss, self._prior_weight = loss, prior_weight
        self.register_buffer("alphas_cumprod", base.alphas_cumprod(), persistent=False)

    def forward(
        self,
        mean: Tensor,
        std: Tensor,
        latent_noise: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        time_ids: Tensor,
        labels: Tensor,
        embeds: Tensor | None = None,
        pooled: Tensor | None = None,
        input_ids_1: Tensor | None = None,
        input_ids_2: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Any]:
        """Loss of a (micro-)batch.

        Args:
            mean: (R, C, h, w) float32, of the VAE's posterior, in the UNet's units.
            std: (R, C, h, w) float32, of the same.
            latent_noise: (R, C, h, w) float32, standard normal.
            noise: (R, C, h, w) float32, standard normal.
            timesteps: (R,) int64.
            time_ids: (R, 6): original height and width, top and left of the crop, target height and width, in pixels.
            labels: (B,) int64, -100 for a sample that does not count.
            embeds: (R, T, D) cached embeddings of the prompts, with
            pooled: (R, P); or, where the text encoders are trained,
            input_ids_1: (R, T) int64, tokens for the first text encoder, and
            input_ids_2: (R, T) int64, for the second.
            num_items_in_batch: counted samples of the whole step, over processes and micro-batches; none given: of
                this batch.

        Returns:
            `loss`, 0-dim float32: the sum over counted samples of their loss and `prior_weight` times that of their
            class pictures / `num_items_in_batch`, which is the mean of the one and the weighted mean of the other;
            `subject_loss` and, with class pictures, `prior_loss`: the means over this batch. All are 0 in a batch
            in which no sample counts.
        """
        latents = mean + std * latent_noise
        noisy, target = self._add_noise(latents, noise, timesteps)
        if embeds is None:
            assert input_ids_1 is not None, "a batch holds embeddings or tokens"
            assert input_ids_2 is not None, "of both text encoders"
            embeds, pooled = encode_ids(self._base, input_ids_1, input_ids_2)
        predicted = self._base.unet(
            noisy, timesteps, embeds, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}
        ).sample.float()
        losses = (predicted - target).square().flatten(1).mean(dim=1)  # (R,)
        losses = losses * self._timestep_weights(timesteps)
        counted = (labels != IGNORED_LABEL).float()  # (B,)
        count = counted.sum().clamp(min=1)
        subject, prior = losses[: len(labels)], losses[len(labels) :]
        total = (subject * counted).sum()
        found = {"subject_loss": total.detach() / count}
        if len(prior):
            assert len(prior) == len(labels), "each sample brings one class picture"
            prior_total = (prior * counted).sum()
            total = total + self._prior_weight * prior_total
            found["prior_loss"] = prior_total.detach() / count
        return {"loss": total / (count if num_items_in_batch is None else num_items_in_batch), **found}

    def _add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """x_t = √ᾱ·x + √(1-ᾱ)·ε, and what is to be predicted: ε, or v = √ᾱ·ε - √(1-ᾱ)·x (Salimans & Ho 2022)."""
        share = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        signal, spread = share.sqrt(), (1 - share).sqrt()
        noisy = signal * latents + spread * noise
        if self._base.prediction_type == "epsilon":
            return noisy, noise
        return noisy, signal * noise - spread * latents

    def _timestep_weights(self, timesteps: Tensor) -> Tensor | float:
        if self._loss.min_snr_gamma is None:
            return 1.0
        return min_snr_weights(self.alphas_cumprod[timesteps], self._loss.min_snr_gamma, self._base.prediction_type)


def min_snr_weights(alphas_cumprod: Tensor, gamma: float, prediction_type: PredictionType) -> Tensor:
    """Weights by which the loss of x₀ is clipped at a signal-to-noise ratio of γ (Hang et al. 2023, section 3.4).

    With SNR = ᾱ/(1-ᾱ), the weight of |x₀ - x̂₀|² is to be min(SNR, γ). The errors of ε and v are √SNR and √(SNR + 1)
    times that of x₀, so that theirs are min(SNR, γ)/SNR and min(SNR, γ)/(SNR + 1). (diffusers' DreamBooth script has
    min(SNR, γ)/SNR + 1 for v, and does not weight class pictures.)

    Args:
        alphas_cumprod: ᾱ at each row's timestep, (R,).
        gamma: γ.
        prediction_type: what is predicted.

    Returns:
        (R,), in [0, 1].
    """
    kept, lost = alphas_cumprod, 1 - alphas_cumprod  # SNR is their ratio, infinite or 0 at the ends of a schedule
    if prediction_type == "epsilon":
        return torch.where(kept > gamma * lost, gamma * lost / kept.clamp_min(1e-30), torch.ones_like(kept))
    return torch.minimum(kept, gamma * lost)  # min(SNR, γ)/(SNR + 1), since SNR + 1 = 1/(1-ᾱ)
