from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dreambooth.noise import WithNoise, draw

SHAPE = (2, 3, 3)


def collate(samples: list[int]) -> dict[str, Tensor]:
    return {"mean": torch.zeros(len(samples), *SHAPE), "noise_seed": torch.tensor(samples)}


def test_a_row_has_the_same_noise_in_any_batch() -> None:
    together, alone = WithNoise(collate, 1000)([5, 6, 7]), WithNoise(collate, 1000)([6])
    for key in ("latent_noise", "noise", "timesteps"):
        assert torch.equal(together[key][1:2], alone[key]), key
    assert "noise_seed" not in together


def test_rows_and_kinds_of_noise_are_independent() -> None:
    draws = [draw(seed, (8, 16, 16), 1000) for seed in range(64)]
    flat = np.stack([each.noise.ravel() for each in draws] + [each.latent_noise.ravel() for each in draws])
    correlations = np.corrcoef(flat)[np.triu_indices(128, 1)]
    # 2048 numbers each: a correlation has a standard deviation of 0.022, the largest of 8128 stays below 0.11
    assert np.abs(correlations).max() < 0.11
    assert abs(flat.mean()) < 0.01
    assert abs(flat.std() - 1) < 0.01


def test_timesteps_are_uniform() -> None:
    counts = np.bincount([draw(seed, (1,), 10).timestep for seed in range(5000)], minlength=10)
    # chi-square with 9 degrees of freedom exceeds 27.9 once in a thousand
    assert len(counts) == 10
    assert ((counts - 500) ** 2 / 500).sum() < 27.9
