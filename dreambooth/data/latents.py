"""Pictures → the posterior of the VAE, worked out once for each picture and variant.

What is kept is mean and standard deviation, not a sample: as without a cache, a latent is drawn anew every time that a
picture is seen. C latent channels, h and w latent size, V variants of a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common.cache import cache_root, fingerprint_of
from common.errors import UserError
from common.pictures import DecodeError, read_file
from dreambooth.data import store
from dreambooth.data.pictures import Cropping, Variant, crops, draw_variants, time_ids
from dreambooth.data.subjects import Picture
from dreambooth.model import LatentScale, SdxlBase

_VERSION = 1
# Pixels that are encoded at once: one picture of 1024 x 1024, for which the encoder needs some gigabytes.
_PIXELS_AT_ONCE = 1 << 20
_MOST_AT_ONCE = 32


class Latents:
    """The posteriors of pictures, read from their files when they are asked for; pickled are the files' names.

    Args:
        folder: of the cache.
        keys: one for each picture.
        scale: from the VAE's units to the UNet's.
    """

    def __init__(self, folder: Path, keys: list[str], scale: LatentScale) -> None:
        self._folder, self._keys, self._scale = folder, keys, scale
        self._variants = [store.rows(folder, key) for key in keys]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._keys)

    def variants(self, picture: int) -> int:
        """How many variants there are of a picture."""
        return self._variants[picture]

    def read(self, picture: int, variant: int) -> dict[str, Tensor]:
        """One variant of a picture.

        Returns:
            `mean` and `std` (C, h, w) float32 in the UNet's units, `time_ids` (6,) float32.

        Raises:
            UserError: the cache has been removed or damaged.
        """
        found = store.read(self._folder, self._keys[picture], variant)
        found["mean"] = self._scale.to_unet(found["mean"][None])[0]
        spread = torch.tensor(self._scale.std or (1.0,)).view(-1, 1, 1)  # a shift of the mean leaves the deviation
        found["std"] = found["std"] * self._scale.factor / spread
        return found


def prepare_latents(
    base: SdxlBase, pictures: Sequence[Picture], cropping: Cropping, *, cache_dir: str | None, what: str
) -> Latents:
    """Encode what is not in the cache; pictures that are take no work.

    Args:
        base: with its VAE, where anything is missing.
        pictures: which.
        cropping: how variants are drawn.
        cache_dir: the recipe's `data.cache_dir`.
        what: the pictures show, for the progress bar.

    Raises:
        UserError: a picture has changed meanwhile, the VAE's result is not finite, or nothing can be written.
    """
    folder = cache_root(cache_dir) / "dreambooth" / "latents" / base.fingerprint[:32]
    plans = [_Plan(picture, cropping) for picture in pictures]
    by_key = {plan.key: plan for plan in plans}

    def make(keys: list[str]) -> None:
        todo = [by_key[key] for key in keys]
        count = sum(len(plan.variants) for plan in todo)
        with tqdm(desc=f"encoding {what}", total=count, unit="crop", disable=None) as bar:
            for group in _groups(todo, cropping.resolution):
                for plan, posterior in _encoded(base, group, cropping.resolution):
                    store.write(folder, plan.key, posterior)
                    bar.update(len(plan.variants))

    store.make_missing(folder, list(by_key), make, "latents")
    return Latents(folder, [plan.key for plan in plans], base.latent_scale)


class _Plan:
    """The variants of one picture, and the key of their latents: what they depend on beside the VAE."""

    def __init__(self, picture: Picture, cropping: Cropping) -> None:
        self.picture = picture
        look, size = picture.look, cropping.resolution
        self.variants = draw_variants(look.height, look.width, look.content, cropping)
        self.time_ids = [time_ids(look.height, look.width, variant, size) for variant in self.variants]
        self.key = fingerprint_of(_VERSION, look.content, size, self.variants, self.time_ids)[:40]


def _at_once(resolution: int) -> int:
    return max(1, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // resolution**2))


def _groups(plans: Sequence[_Plan], resolution: int) -> Iterator[list[_Plan]]:
    """Pictures whose variants go through the VAE together; one at least."""
    group: list[_Plan] = []
    for plan in plans:
        if group and sum(len(each.variants) for each in [*group, plan]) > _at_once(resolution):
            yield group
            group = []
        group.append(plan)
    if group:
        yield group


def _encoded(base: SdxlBase, plans: list[_Plan], resolution: int) -> Iterator[tuple[_Plan, dict[str, Tensor]]]:
    pixels = torch.cat([_pixels(plan.picture, plan.variants, resolution) for plan in plans])
    parts = [encode(base, part) for part in pixels.split(_at_once(resolution))]
    mean, std = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    first = 0
    for plan in plans:
        end = first + len(plan.variants)
        _require_finite(mean[first:end], std[first:end], plan.picture)
        yield plan, {"mean": mean[first:end], "std": std[first:end], "time_ids": torch.tensor(plan.time_ids).float()}
        first = end


@torch.no_grad()
def encode(base: SdxlBase, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior of pictures in the VAE's own precision, without autocast: it is computed once, and used often.

    Args:
        base: with its VAE.
        pixels: (V, 3, R, R) float32 in [-1, 1].

    Returns:
        mean and standard deviation, (V, C, h, w) float32 on the CPU, in the VAE's units.
    """
    vae = base.vae
    assert vae is not None, "the VAE has been released before all latents were made"
    weight = next(vae.parameters())
    with torch.autocast(weight.device.type, enabled=False):
        posterior = vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist
    return posterior.mean.float().cpu(), posterior.std.float().cpu()


def _pixels(picture: Picture, variants: Sequence[Variant], resolution: int) -> Tensor:
    try:
        data = read_file(picture.path)
        return crops(data, variants, resolution)
    except (OSError, DecodeError) as error:
        raise UserError(
            f"{picture.path} could be read when the run began and cannot be now: {error}; mend it and start again"
        ) from error


def _require_finite(mean: Tensor, std: Tensor, picture: Picture) -> None:
    if not (mean.isfinite().all() and std.isfinite().all()):
        raise UserError(
            f"the VAE made numbers that are not finite of {picture.path}: SDXL's own VAE overflows in float16. Give "
            "one that does not, model.vae=madebyollin/sdxl-vae-fp16-fix; if it is that one, its file is damaged"
        )
