"""Pictures from prompts and seeds, on the tiny SDXL and against diffusers' own pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from common.config import AdapterConfig
from common.errors import UserError
from dreambooth.config import DreamboothRecipe, ModelConfig
from dreambooth.generate import PictureJob, embed_prompts, generate, initial_noise
from dreambooth.model import SdxlBase, load_model, prepare_training
from tests.dreambooth.tiny import tiny_sdxl

JOBS = [PictureJob("a dog in the snow", 0), PictureJob("a cat", 1), PictureJob("a dog in the snow", 7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl(tmp_path_factory.mktemp("sdxl") / "tiny")


@pytest.fixture
def base(folder: Path) -> SdxlBase:
    return load_model(ModelConfig(name=str(folder)))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def made(base: SdxlBase, jobs: list[PictureJob] = JOBS, **options: Any) -> list[np.ndarray]:
    return [pixels(image) for image in generate(base, jobs, steps=4, **options)]


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_a_picture_is_that_of_diffusers_own_pipeline(folder: Path, base: SdxlBase, guidance: float) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    found = made(base, guidance=guidance)
    for job, mine in zip(JOBS, found, strict=True):
        theirs = pipeline(
            job.prompt,
            num_inference_steps=4,
            guidance_scale=guidance,
            height=16,
            width=16,
            generator=torch.Generator().manual_seed(job.seed),
        ).images[0]
        assert abs(pixels(theirs) - mine).max() <= 1  # rounding at the half of a grey level
    assert abs(found[0] - found[1]).max() > 30
    assert abs(found[0] - found[2]).max() > 30


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_batch_changes_nothing_but_rounding(base: SdxlBase, batch_size: int) -> None:
    for one, other in zip(made(base, batch_size=8), made(base, batch_size=batch_size), strict=True):
        assert abs(one - other).max() <= 1


def test_noise_depends_on_the_seed_alone(base: SdxlBase, folder: Path) -> None:
    other = load_model(ModelConfig(name=str(folder)), precision="bf16")
    assert initial_noise(base, 5, 16)[0].equal(initial_noise(other, 5, 16)[0])
    assert initial_noise(base, 5, 16)[0].dtype == torch.float32
    assert not initial_noise(base, 5, 16)[0].equal(initial_noise(base, 6, 16)[0])


def test_bf16_makes_nearly_the_same_picture(base: SdxlBase, folder: Path) -> None:
    half = load_model(ModelConfig(name=str(folder)), precision="bf16")
    for one, other in zip(made(base), made(half), strict=True):
        assert abs(one - other).mean() < 10  # of 255; bf16 has three significant digits


def test_live_adapters_stay_on_and_modes_and_the_global_generator_are_left_alone(base: SdxlBase) -> None:
    before = made(base)
    prepare_training(base, DreamboothRecipe(adapter=AdapterConfig(method="moslora", r=4, alpha=4)))
    assert base.unet.training
    with torch.no_grad():
        for parameter in base.unet.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)
    modes = [module.training for module in base.unet.modules()]
    state = torch.get_rng_state()
    after = made(base)
    assert state.equal(torch.get_rng_state())
    assert [module.training for module in base.unet.modules()] == modes
    assert any(modes)
    assert abs(after[0] - before[0]).max() > 10


def test_text_encoders_can_be_released_before(base: SdxlBase) -> None:
    before = made(base)
    embedded = embed_prompts(base, [job.prompt for job in JOBS])
    base.release(text_encoders=True)
    for one, other in zip(before, made(base, embedded=embedded), strict=True):
        assert abs(one - other).max() <= 1


def test_guidance_leads_away_from_zeros_unless_the_model_wants_the_empty_prompt(base: SdxlBase) -> None:
    zeros, pooled = embed_prompts(base, ["a dog"])[""]
    assert not zeros.any()
    assert not pooled.any()
    base.zero_empty_prompt = False
    assert embed_prompts(base, ["a dog"])[""][0].any()


def test_no_jobs_make_no_pictures(base: SdxlBase) -> None:
    assert made(base, []) == []


@pytest.mark.parametrize(("size", "near"), [(18, 16), (3, 8), (30, 32)])
def test_a_size_that_the_unet_cannot_make_is_refused(base: SdxlBase, size: int, near: int) -> None:
    with pytest.raises(UserError, match=rf"size={size} is not a multiple of 8 pixels.*; use {near}"):
        made(base, size=size)


def test_another_size_is_made(base: SdxlBase) -> None:
    assert made(base, JOBS[:1], size=24)[0].shape == (24, 24, 3)


def test_a_model_that_computes_nan_makes_no_black_picture(base: SdxlBase) -> None:
    with torch.no_grad():
        base.unet.conv_out.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"no number.*has its training diverged"):
        made(base)
