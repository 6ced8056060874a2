"""The loss of a batch: what is counted, how it is weighted, and that dividing a batch does not change it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.config import AdapterConfig
from dreambooth.config import DreamboothRecipe, LossConfig, ModelConfig, PredictionType, TextEncoderConfig
from dreambooth.model import SdxlBase, encode_prompts, load_model, prepare_training
from dreambooth.objective import DenoisingObjective, min_snr_weights

ROWS = 4


@pytest.fixture
def base(tiny_model: Path) -> SdxlBase:
    """With an adapter that has an effect already."""
    base = load_model(ModelConfig(name=str(tiny_model)))
    prepare_training(base, DreamboothRecipe(adapter=AdapterConfig(method="moslora", r=4, dropout=0.0)))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in base.unet.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return base


def batch_of(base: SdxlBase, rows: int = ROWS) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    encoded = encode_prompts(base, [f"picture {i}" for i in range(rows)])
    normal = {key: torch.randn(rows, 4, 8, 8, generator=draw) for key in ("mean", "latent_noise", "noise")}
    return {
        **normal,
        "std": torch.rand(rows, 4, 8, 8, generator=draw),
        "timesteps": torch.randint(1000, (rows,), generator=draw),
        "time_ids": torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]] * rows),
        "embeds": encoded.embeds,
        "pooled": encoded.pooled,
        "labels": torch.zeros(rows, dtype=torch.int64),
    }


def rows_of(batch: dict[str, Tensor], rows: list[int], samples: int | None = None) -> dict[str, Tensor]:
    taken = {key: value[rows] for key, value in batch.items() if key != "labels"}
    return taken | {"labels": batch["labels"][: len(rows) if samples is None else samples]}


def test_parts_of_a_batch_sum_to_the_whole(base: SdxlBase) -> None:
    objective, batch = DenoisingObjective(base, LossConfig(5.0)), batch_of(base)
    whole = objective(**batch)["loss"].item()
    parts = [objective(**rows_of(batch, rows), num_items_in_batch=ROWS)["loss"].item() for rows in ([0], [1, 2, 3])]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)  # float32 sums in another order


def test_class_pictures_are_a_mean_of_their_own(base: SdxlBase) -> None:
    batch = rows_of(batch_of(base), [0, 1, 2, 3], samples=2)
    found = DenoisingObjective(base, LossConfig(), prior_weight=0.3)(**batch)
    each = [DenoisingObjective(base, LossConfig())(**rows_of(batch_of(base), [i]))["loss"].item() for i in range(4)]
    assert found["subject_loss"].item() == pytest.approx((each[0] + each[1]) / 2, rel=1e-5)
    assert found["prior_loss"].item() == pytest.approx((each[2] + each[3]) / 2, rel=1e-5)
    assert found["loss"].item() == pytest.approx((each[0] + each[1] + 0.3 * (each[2] + each[3])) / 2, rel=1e-5)


def test_parts_of_a_batch_with_class_pictures_sum_to_the_whole(base: SdxlBase) -> None:
    objective, batch = DenoisingObjective(base, LossConfig(), prior_weight=0.3), batch_of(base)
    whole = objective(**rows_of(batch, [0, 1, 2, 3], samples=2))["loss"].item()
    parts = [rows_of(batch, rows, samples=1) for rows in ([0, 2], [1, 3])]
    losses = [objective(**part, num_items_in_batch=2)["loss"].item() for part in parts]
    assert sum(losses) == pytest.approx(whole, rel=1e-5)


def test_a_sample_that_does_not_count_has_neither_loss_nor_gradient(base: SdxlBase) -> None:
    objective = DenoisingObjective(base, LossConfig(), prior_weight=1.0)
    batch = rows_of(batch_of(base), [0, 1], samples=1) | {"labels": torch.tensor([-100])}
    found = objective(**batch, num_items_in_batch=3)
    found["loss"].backward()
    assert found["loss"].item() == found["subject_loss"].item() == found["prior_loss"].item() == 0.0
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    # a gradient of zeros, not none: other processes wait for it
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in trained)


def test_every_trained_parameter_gets_a_gradient(tiny_model: Path) -> None:
    base = load_model(ModelConfig(name=str(tiny_model)))
    recipe = DreamboothRecipe(
        adapter=AdapterConfig(method="lora", r=2, dropout=0.0), text_encoder=TextEncoderConfig(train=True)
    )
    prepare_training(base, recipe)
    objective, batch = DenoisingObjective(base, LossConfig()), batch_of(base, rows=1)
    ids = torch.randint(90, (1, 77), generator=torch.Generator().manual_seed(0))
    del batch["embeds"], batch["pooled"]
    objective(**batch, input_ids_1=ids, input_ids_2=ids)["loss"].backward()
    without = [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    parts = {name.split(".")[0] for name, p in objective.named_parameters() if p.requires_grad}
    assert parts == {"unet", "text_encoder", "text_encoder_2"}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_clips_the_weight_of_the_picture_itself(kind: PredictionType) -> None:
    """Hang et al. 2023: the loss on x₀ is weighted by min(SNR, γ); an error of ε or v is that much of x₀, squared."""
    share = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    snr, gamma = share / (1 - share), 5.0
    # x0 = (x_t - √(1-ᾱ) ε)/√ᾱ, so that an error e of ε is one of √((1-ᾱ)/ᾱ) e of x0; x0 = √ᾱ x_t - √(1-ᾱ) v
    of_picture = (1 - share) / share if kind == "epsilon" else 1 - share
    expected = torch.minimum(snr, torch.tensor(gamma, dtype=torch.float64)) * of_picture
    assert torch.allclose(min_snr_weights(share, gamma, kind), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_is_finite_at_the_ends_of_a_schedule(kind: PredictionType) -> None:
    weights = min_snr_weights(torch.tensor([0.0, 1.0]), 5.0, kind)
    assert weights.tolist() == [1.0 if kind == "epsilon" else 0.0, 0.0]


def test_min_snr_of_epsilon_is_that_of_the_published_script(base: SdxlBase) -> None:
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    timesteps = torch.tensor([0, 10, 500, 999])
    snr = compute_snr(DDPMScheduler.from_config(dict(base.scheduler_config)), timesteps)
    expected = torch.minimum(snr, torch.full_like(snr, 5.0)) / snr
    assert torch.allclose(min_snr_weights(base.alphas_cumprod()[timesteps], 5.0, "epsilon"), expected, rtol=1e-5)
