"""Loss and gradients against an independent transcription of diffusers' published step (`tests.dreambooth.published`).

Same weights, pictures, prompts, noise and timesteps, in float32. What differs is the order of a few sums and products
(α/r·B·A, the mean over pixels), hence 1e-5 relative for the loss and 1e-4 of the largest entry for a gradient, which
has gone through some sixty layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config import AdapterConfig
from dreambooth.config import DataConfig, DreamboothRecipe, ModelConfig, PriorConfig, TextEncoderConfig, TrainConfig
from dreambooth.data import Collate, open_data
from dreambooth.model import SdxlBase, load_model, prepare_training
from dreambooth.noise import WithNoise
from dreambooth.objective import DenoisingObjective
from tests.dreambooth.drawn import draw_subject
from tests.dreambooth.published import PublishedStep, pixels_of
from tests.dreambooth.tiny import IMAGE_SIZE

RANK, WEIGHT, BATCH = 4, 0.7, 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of the subject and three of its class, of the size that is trained at."""
    folder = tmp_path_factory.mktemp("pictures")
    draw_subject(folder / "subject", count=BATCH, side=IMAGE_SIZE)
    draw_subject(folder / "class", count=2 * BATCH, side=IMAGE_SIZE)
    return folder


def recipe_of(model: Path, pictures: Path, *, prior: bool, text: bool) -> DreamboothRecipe:
    return DreamboothRecipe(
        model=ModelConfig(name=str(model)),
        data=DataConfig(path=str(pictures / "subject"), class_word="disc", resolution=IMAGE_SIZE),
        adapter=AdapterConfig(method="lora", r=RANK, alpha=RANK, dropout=0.0),
        text_encoder=TextEncoderConfig(train=text),
        prior=PriorConfig(weight=WEIGHT, pictures=2 * BATCH, path=str(pictures / "class")) if prior else PriorConfig(),
        train=TrainConfig(max_steps=1, batch_size=BATCH, precision="float32"),
    )


def own_step(recipe: DreamboothRecipe) -> tuple[SdxlBase, dict[str, Tensor], list[Path], list[str], DenoisingObjective]:
    """The base with its adapter, a batch, the pictures and prompts of its rows, and the objective."""
    base = load_model(recipe.model)
    data = open_data(base, recipe)
    prepare_training(base, recipe)
    objective = DenoisingObjective(base, recipe.loss, recipe.prior.weight)
    samples = [data.samples[(0, i)] for i in range(BATCH)]
    batch = WithNoise(Collate(), len(objective.alphas_cumprod))(samples)
    paths = [data.subject.pictures[i].path for i in range(BATCH)]
    prompts = ["a photo of ikat disc"] * BATCH
    if data.prior is not None:
        # which class pictures ride along is the data layer's affair: told by their latents
        paths += [_picture_of(batch["mean"][BATCH + i], base, data.prior.pictures) for i in range(BATCH)]
        prompts += ["a photo of disc"] * BATCH
    return base, batch, paths, prompts, objective


def _picture_of(mean: Tensor, base: SdxlBase, pictures: list[Any]) -> Path:
    assert base.vae is not None
    pixels = torch.stack([pixels_of(picture.path) for picture in pictures])
    with torch.no_grad():
        means = base.vae.encode(pixels).latent_dist.mean * base.vae.config.scaling_factor
    return pictures[int((means - mean).abs().flatten(1).sum(1).argmin())].path


def give_weights(base: SdxlBase, published: PublishedStep) -> dict[str, dict[str, Tensor]]:
    """Random weights, the same on both sides; component -> layer and matrix -> our parameter."""
    generator = torch.Generator().manual_seed(5)
    own: dict[str, dict[str, Tensor]] = {}
    for component, adapted in base.adapters.items():
        own[component] = {
            name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter
            for name, parameter in adapted.named_parameters()
            if parameter.requires_grad
        }
        theirs = published.lora(component)
        assert own[component].keys() <= theirs.keys()
        with torch.no_grad():
            for name, parameter in own[component].items():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
                theirs[name].copy_(parameter)
    return own


@pytest.mark.parametrize("prior", [False, True], ids=["alone", "with class pictures"])
@pytest.mark.parametrize("kind", ["epsilon", "v"])
@pytest.mark.parametrize("text", [False, True], ids=["unet", "unet and text encoders"])
def test_loss_and_gradients_are_those_of_the_published_step(
    kind: str, prior: bool, text: bool, tiny_model: Path, tiny_v_model: Path, pictures: Path
) -> None:
    model = tiny_model if kind == "epsilon" else tiny_v_model
    base, batch, paths, prompts, objective = own_step(recipe_of(model, pictures, prior=prior, text=text))
    published = PublishedStep(model, RANK, trains_text=text)
    own = give_weights(base, published)

    loss = objective(**batch)["loss"]
    loss.backward()
    expected = published.loss(paths, prompts, batch, WEIGHT if prior else None)
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for component, parameters in own.items():
        for name, theirs in published.lora(component).items():
            if name not in parameters:  # the last layer of the first text encoder, of which the UNet sees nothing
                assert theirs.grad is None, name
                continue
            assert theirs.grad is not None, name
            difference = (parameters[name].grad - theirs.grad).abs().max()
            assert difference <= 1e-4 * theirs.grad.abs().max(), name
            assert theirs.grad.abs().max() > 0, name


def test_prediction_types_differ(tiny_model: Path, tiny_v_model: Path, pictures: Path) -> None:
    losses = []
    for model in (tiny_model, tiny_v_model):
        *_, batch, _, _, objective = own_step(recipe_of(model, pictures, prior=False, text=False))
        losses.append(objective(**batch)["loss"].item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-2)
