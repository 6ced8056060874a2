"""The cached posterior is the VAE's own, whatever happened to the cache."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from common.errors import UserError
from dreambooth.data import latents as module
from dreambooth.data.latents import Latents, prepare_latents
from dreambooth.data.pictures import Cropping, crops
from dreambooth.data.subjects import Picture, read_folder
from dreambooth.model import LatentScale, SdxlBase

CENTER = Cropping(resolution=16, crop="center", flip=False, variants=8, seed=0)
RANDOM = replace(CENTER, crop="random", flip=True)


@pytest.fixture
def pictures(folder: Path) -> list[Picture]:
    return read_folder(folder, "data.path")[0]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many crops went through the VAE, call by call."""
    calls: list[int] = []
    true = module.encode

    def counting(base: SdxlBase, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(pixels))
        return true(base, pixels)

    monkeypatch.setattr(module, "encode", counting)
    return calls


@pytest.fixture
def prepare(base: SdxlBase, tmp_path: Path) -> Callable[..., Latents]:
    def run(pictures: list[Picture], cropping: Cropping = CENTER) -> Latents:
        return prepare_latents(base, pictures, cropping, cache_dir=str(tmp_path / "cache"), what="robot")

    return run


def everything(latents: Latents) -> list[dict[str, torch.Tensor]]:
    return [latents.read(i, v) for i in range(len(latents)) for v in range(latents.variants(i))]


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.safetensors"))


@torch.no_grad()
def test_posterior_is_the_one_of_the_vae(
    base: SdxlBase, pictures: list[Picture], prepare: Callable[..., Latents]
) -> None:
    latents = prepare(pictures)
    assert base.vae is not None
    for i, picture in enumerate(pictures):
        whole = Image.open(picture.path).convert("RGB")
        short = min(whole.size)
        scaled = (int(16 * whole.width / short), int(16 * whole.height / short))
        left, top = round((scaled[0] - 16) / 2), round((scaled[1] - 16) / 2)
        pixels = crops(picture.path.read_bytes(), [module.Variant(top, left, False)], 16)
        posterior = base.vae.encode(pixels).latent_dist
        found = latents.read(i, 0)
        # 1e-5: other batches, other rounding
        torch.testing.assert_close(found["mean"], posterior.mean[0] * 0.13025, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["std"], posterior.std[0] * 0.13025, rtol=1e-5, atol=1e-6)
        assert found["mean"].dtype == found["std"].dtype == torch.float32
        assert found["mean"].shape == (4, 8, 8)
        assert found["time_ids"].tolist() == [whole.height, whole.width, top, left, 16, 16]


@torch.no_grad()
def test_latents_drawn_from_it_have_the_statistics_of_the_vaes_own(
    base: SdxlBase, pictures: list[Picture], prepare: Callable[..., Latents]
) -> None:
    found = prepare(pictures).read(0, 0)
    (variant,) = module.draw_variants(24, 40, pictures[0].look.content, CENTER)
    assert base.vae is not None
    posterior = base.vae.encode(crops(pictures[0].path.read_bytes(), [variant], 16)).latent_dist
    draw = torch.Generator().manual_seed(3)
    theirs = torch.stack([posterior.sample(draw)[0] * base.vae.config.scaling_factor for _ in range(4000)])
    ours = found["mean"] + found["std"] * torch.randn(4000, 4, 8, 8, generator=draw)
    # five standard errors of the mean of 4000 draws, and of their standard deviation
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * found["std"] * (2 / 4000) ** 0.5).all()
    assert ((ours.std(0) / theirs.std(0) - 1).abs() < 5 * (1 / 4000) ** 0.5).all()


def test_scale_and_shift_of_the_channels_are_applied(
    base: SdxlBase, pictures: list[Picture], prepare: Callable[..., Latents]
) -> None:
    plain = prepare(pictures).read(0, 0)
    base.latent_scale = LatentScale(0.5, mean=(1.0, 2.0, 3.0, 4.0), std=(1.0, 2.0, 4.0, 8.0))
    found = prepare(pictures).read(0, 0)
    mean, std = (torch.tensor(values).view(4, 1, 1) for values in ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 8.0]))
    torch.testing.assert_close(found["mean"], (plain["mean"] / 0.13025 - mean) * 0.5 / std)
    torch.testing.assert_close(found["std"], plain["std"] / 0.13025 * 0.5 / std)


def test_a_second_run_encodes_nothing_and_needs_no_vae(
    base: SdxlBase, pictures: list[Picture], prepare: Callable[..., Latents], encoded: list[int]
) -> None:
    first = everything(prepare(pictures, RANDOM))
    assert sum(encoded) == len(first) > 10
    base.release(vae=True)
    for one, other in zip(first, everything(prepare(pictures, RANDOM)), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert sum(encoded) == len(first)


def test_the_same_picture_under_another_name_is_found(
    folder: Path, pictures: list[Picture], prepare: Callable[..., Latents], encoded: list[int]
) -> None:
    prepare(pictures)
    (folder / "0.png").rename(folder / "other.png")
    prepare(read_folder(folder, "data.path")[0])
    assert sum(encoded) == 5


@pytest.mark.parametrize(
    "change",
    [{"resolution": 24}, {"crop": "random"}, {"flip": True}, {"crop": "random", "seed": 1}],
    ids=lambda change: ",".join(change),
)
def test_other_settings_are_other_latents(
    pictures: list[Picture], prepare: Callable[..., Latents], encoded: list[int], change: dict[str, object]
) -> None:
    prepare(pictures)
    before = sum(encoded)
    prepare(pictures, replace(CENTER, **change))  # type: ignore[arg-type]
    assert sum(encoded) > before


def test_another_model_is_another_cache(
    base: SdxlBase, pictures: list[Picture], prepare: Callable[..., Latents], encoded: list[int]
) -> None:
    prepare(pictures)
    base.fingerprint = "f" * 32
    prepare(pictures)
    assert sum(encoded) == 10


def test_a_changed_picture_is_encoded_again(
    folder: Path, pictures: list[Picture], prepare: Callable[..., Latents], encoded: list[int]
) -> None:
    prepare(pictures)
    Image.new("RGB", (40, 24), "red").save(folder / "0.png")
    prepare(read_folder(folder, "data.path")[0])
    assert encoded == [5, 1]


@pytest.mark.parametrize("damage", ["cut", "bit", "other", "empty"])
def test_a_damaged_file_is_made_anew_and_said(
    tmp_path: Path, pictures: list[Picture], prepare: Callable[..., Latents], encoded: list[int], damage: str
) -> None:
    first = everything(prepare(pictures))
    file = files(tmp_path)[2]
    data = bytearray(file.read_bytes())
    data[-5] ^= 16
    changed = {"cut": bytes(data[:-9]), "bit": bytes(data), "other": b"no safetensors", "empty": b""}
    file.write_bytes(changed[damage])
    with pytest.warns(UserWarning, match=f"{file.name} is made anew"):
        again = everything(prepare(pictures))
    assert encoded == [5, 1]
    for one, other in zip(first, again, strict=True):
        # 1e-5: it went through the VAE alone this time
        assert all(torch.allclose(one[name], other[name], rtol=1e-5, atol=1e-6) for name in one)


def test_what_was_encoded_before_an_interruption_is_kept(
    tmp_path: Path,
    pictures: list[Picture],
    prepare: Callable[..., Latents],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 1)
    true, calls = module.encode, [0]

    def interrupted(base: SdxlBase, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return true(base, pixels)

    monkeypatch.setattr(module, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(pictures)
    assert len(files(tmp_path)) == 3
    assert len(prepare(pictures)) == 5
    assert calls[0] == 6  # three, the one that was interrupted, and the two that were left


def test_pictures_go_through_the_vae_several_at_a_time_and_one_megapixel_at_most(
    pictures: list[Picture], prepare: Callable[..., Latents], encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [module._at_once(size) for size in (2048, 1024, 512, 64)] == [1, 1, 4, 32]
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 16 * 16 * 3)
    latents = prepare(pictures, RANDOM)
    assert max(encoded) == 3
    assert sum(encoded) == sum(latents.variants(i) for i in range(5))


def test_numbers_that_are_not_finite_name_the_vae_that_does_not_overflow(
    base: SdxlBase, pictures: list[Picture], prepare: Callable[..., Latents], tmp_path: Path
) -> None:
    assert base.vae is not None
    base.vae = copy.deepcopy(base.vae)
    base.vae.quant_conv.weight.data.fill_(torch.inf)
    with pytest.raises(UserError, match=r"not finite of .*0\.png.*model\.vae=madebyollin/sdxl-vae-fp16-fix"):
        prepare(pictures)
    assert files(tmp_path) == []


def test_a_picture_that_vanishes_is_named(
    folder: Path, pictures: list[Picture], prepare: Callable[..., Latents]
) -> None:
    (folder / "3.png").unlink()
    with pytest.raises(UserError, match=r"3\.png could be read when the run began and cannot be now"):
        prepare(pictures)


def test_a_cache_that_vanishes_in_training_is_an_error_that_says_what_to_do(
    tmp_path: Path, pictures: list[Picture], prepare: Callable[..., Latents]
) -> None:
    latents = prepare(pictures)
    for file in files(tmp_path):
        file.unlink()
    with pytest.raises(UserError, match="start the same command again"):
        latents.read(0, 0)


def test_a_cache_that_cannot_be_written_is_explained(base: SdxlBase, pictures: list[Picture], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        prepare_latents(base, pictures, CENTER, cache_dir=str(tmp_path / "file"), what="robot")


def test_the_file_holds_float32(tmp_path: Path, pictures: list[Picture], prepare: Callable[..., Latents]) -> None:
    prepare(pictures)
    with safe_open(files(tmp_path)[0], "pt") as file:
        assert {name: file.get_slice(name).get_dtype() for name in file.keys()} == {  # noqa: SIM118
            "mean": "F32",
            "std": "F32",
            "time_ids": "F32",
        }
