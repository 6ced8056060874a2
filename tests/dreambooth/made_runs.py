"""Runs of dreambooth as a training leaves them, without the training: adapters of random weights on the tiny SDXL."""

from __future__ import annotations

from pathlib import Path

import torch

from common.config import AdapterConfig, Method, TrainConfig
from common.training import RunDirectory
from dreambooth.config import DataConfig, DreamboothRecipe, ModelConfig, with_places
from dreambooth.model import load_model, prepare_training, save_run
from tests.dreambooth.drawn import draw_subject


def make_run(
    path: Path, model: Path, subject: str = "duck", *, class_word: str = "toy", method: Method = "lora", seed: int = 0
) -> Path:
    """A finished run whose adapter changes pictures visibly; its pictures lie in `path`'s neighbour `pictures`."""
    pictures = path.parent / "pictures" / subject
    if not pictures.is_dir():
        draw_subject(pictures)
    recipe = with_places(
        DreamboothRecipe(
            model=ModelConfig(name=str(model)),
            data=DataConfig(path=str(pictures), class_word=class_word, token="zqx", resolution=16),
            adapter=AdapterConfig(method=method, r=8),
            train=TrainConfig(max_steps=1, batch_size=1, warmup_steps=0, precision="float32"),
            output=str(path),
        )
    )
    run = RunDirectory.create(path, recipe, resume="never")
    base = load_model(recipe.model)
    prepare_training(base, recipe)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in base.unet.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    save_run(base, run.path, subject=subject, class_word=class_word, token="zqx")
    run.write_results(task="dreambooth", metrics={}, n=1, seed=0)
    return path
