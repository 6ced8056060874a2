"""Pictures drawn while a run trains, always from the same noise, so that one sees what it learns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from common.files import atomic_write
from common.pictures import encoded
from common.reporting.samples import Sample, Samples
from common.training import processes
from common.words import counted
from common.write_errors import writing_is_explained
from dreambooth.config import DreamboothRecipe, fill_in
from dreambooth.generate import PictureJob, embed_prompts, generate
from dreambooth.grid import Columns, SheetRow, draw_sheet
from dreambooth.model import SdxlBase

FOLDER = "validation"
LEAST_SIDE, MOST_SIDE = 128, 512  # of a picture in a grid, in pixels
AT_ONCE = 4


class Validation:
    """Draws the recipe's validation prompts and writes them into the run as a grid, one for each time.

    Make it while the base has its text encoders; if they are trained they are asked anew each time, else once and for
    all. The VAE waits on the CPU and visits the device while pictures are drawn.

    Args:
        base: with its text encoders and its VAE.
        recipe: with validation prompts.
        class_word: of the subject.
        run: the run directory.
    """

    def __init__(self, base: SdxlBase, recipe: DreamboothRecipe, class_word: str, run: Path) -> None:
        assert recipe.validation.prompts, "without prompts there is nothing to draw"
        self._base, self._settings, self._run = base, recipe.validation, run
        self._size = recipe.data.resolution
        self._prompts = [
            fill_in(prompt, token=recipe.data.token, class_word=class_word) for prompt in recipe.validation.prompts
        ]
        self._seeds = range(recipe.validation.seed, recipe.validation.seed + recipe.validation.pictures)
        self._embedded = None if recipe.text_encoder.train else embed_prompts(base, self._prompts)

    def __call__(self, step: int) -> dict[str, float]:
        """Draw; a collective call, of which every process draws its share.

        Args:
            step: optimizer steps done.

        Returns:
            `pictures`: how many were drawn.
        """
        jobs = [PictureJob(prompt, seed) for prompt in self._prompts for seed in self._seeds]
        rank, count = processes.rank(), processes.world_size()
        shares = processes.gather(self._draw(jobs[rank::count]))
        pictures = [shares[i % count][i // count] for i in range(len(jobs))]
        write, path = writing_is_explained(self._run)(_write), self._run / FOLDER / f"step-{step:06d}.png"
        processes.on_main(lambda: write(path, pictures, self._prompts, self._seeds, step))
        return {"pictures": float(len(jobs))}

    def _draw(self, jobs: Sequence[PictureJob]) -> list[bytes]:
        base, settings = self._base, self._settings
        assert base.vae is not None, "the VAE has been released"
        base.vae.to(base.device)
        drawn = generate(
            base,
            jobs,
            steps=settings.steps,
            guidance=settings.guidance,
            size=self._size,
            batch_size=AT_ONCE,
            embedded=self._embedded,
        )
        found = [_made_small(picture) for picture in drawn]
        base.vae.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return found


def last_drawn(run: Path, recipe: DreamboothRecipe, class_word: str) -> Samples | None:
    """The newest grid of a run as its samples; None where none was drawn."""
    config = recipe.validation
    grids = sorted((run / FOLDER).glob("step-*.png"))
    if not config.prompts or not grids:
        return None
    about = f"The validation prompts, drawn at the end from {counted(config.pictures, 'fixed seed')} each."
    prompts = [fill_in(prompt, token=recipe.data.token, class_word=class_word) for prompt in config.prompts]
    return Samples("pictures", about, [Sample(f"{FOLDER}/{grids[-1].name}", question="; ".join(prompts))])


def _made_small(picture: Image.Image) -> bytes:
    picture.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
    return encoded(picture)


def _write(path: Path, pictures: Sequence[bytes], prompts: Sequence[str], seeds: Sequence[int], step: int) -> None:
    images = [Image.open(io.BytesIO(each)) for each in pictures]
    rows = [
        SheetRow(prompt, images[number * len(seeds) : (number + 1) * len(seeds)])
        for number, prompt in enumerate(prompts)
    ]
    columns = [Columns("", [f"seed {seed}" for seed in seeds])]
    side = max(LEAST_SIDE, images[0].width)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, encoded(draw_sheet(columns, rows, side=side, title=f"after {counted(step, 'step')}")))
