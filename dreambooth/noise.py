"""All that is random in a training sample, drawn from one number that the sample brings.

So the trajectory of a run depends neither on how a step is divided among processes and micro-batches nor on whether
the run was interrupted, and it takes no work on the device: batches get their noise where they are put together.

B samples, R rows: B, or 2 B with prior preservation; C, h, w: of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Draw(NamedTuple):
    """What one row needs of chance.

    Args:
        latent_noise: (C, h, w) float32, standard normal: picks a latent from the VAE's posterior.
        noise: (C, h, w) float32, standard normal: is added to the latent.
        timestep: uniform in [0, timesteps).
    """

    latent_noise: np.ndarray
    noise: np.ndarray
    timestep: int


def draw(seed: int, shape: Sequence[int], timesteps: int) -> Draw:
    """The random numbers of a row; the same for the same seed on every machine.

    Args:
        seed: 0 up to 2⁶³ - 1; NumPy mixes it, so that neighbours are as good as any.
        shape: (C, h, w) of a latent.
        timesteps: how many the noise schedule has.
    """
    rng = np.random.default_rng(seed)
    timestep = int(rng.integers(timesteps))
    latent_noise, noise = rng.standard_normal((2, *shape), dtype=np.float32)
    return Draw(latent_noise, noise, timestep)


@dataclass(frozen=True)
class WithNoise:
    """A collate function after which the batch's `noise_seed` has become the noise itself.

    Args:
        collate: samples -> batch with `mean` (R, C, h, w) and `noise_seed` (R,) int64.
        timesteps: how many the noise schedule has.
    """

    collate: Callable[[list[Any]], Mapping[str, Any]]
    timesteps: int

    def __call__(self, samples: list[Any]) -> dict[str, Any]:
        """The batch with `latent_noise`, `noise` (R, C, h, w) float32 and `timesteps` (R,) in the seeds' place."""
        batch = dict(self.collate(samples))
        seeds: Tensor = batch.pop("noise_seed")
        draws = [draw(seed, batch["mean"].shape[1:], self.timesteps) for seed in seeds.tolist()]
        batch["latent_noise"] = torch.from_numpy(np.stack([each.latent_noise for each in draws]))
        batch["noise"] = torch.from_numpy(np.stack([each.noise for each in draws]))
        batch["timesteps"] = torch.tensor([each.timestep for each in draws])
        return batch
