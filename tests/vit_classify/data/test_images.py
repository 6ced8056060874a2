"""Pixels against Pillow and torchvision, and what decides which pixels are seen."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize, resized_crop

from vit_classify.config import DataConfig
from vit_classify.data import DeviceTransform, EvalImages, TrainImages, VitData, collate, open_data
from vit_classify.data.boxes import random_resized_crop, resize_center_crop
from vit_classify.data.resample import crop_resize, cubic, filter_weights

BICUBIC = InterpolationMode.BICUBIC
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# A transform that leaves levels as they are, to compare pixels in levels of 0..255.
LEVELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
SIZES = [(40, 60), (61, 33), (300, 300), (97, 400), (32, 32), (500, 375)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> VitData:
    """Two classes of smooth pictures of very different sizes, stored at native size."""
    root = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i, (height, width) in enumerate(SIZES * 2):
                small = rng.integers(0, 256, (max(3, height // 6), max(3, width // 6), 3), dtype=np.uint8)
                picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
                picture.save(root / split / name / f"{i}.png")
    return open_data(
        DataConfig(name="mixed", source=str(root), cache_dir=str(root / "cache"), store_size=1000, num_workers=0)
    )


def pixels_of(sample: dict, size: int) -> np.ndarray:
    """(S, S, 3) levels after collate and the device's part."""
    values = DeviceTransform(size, **LEVELS)(collate([sample]))[0]
    return values.permute(1, 2, 0).numpy()


def assert_within_a_level(got: np.ndarray, expected: np.ndarray) -> None:
    """One level off at most, two in one value of 10 000: Pillow rounds to 8 bits between the passes over rows and
    columns (and Pillow 13 chooses which comes first), so that a value can be rounded apart twice."""
    off = np.abs(got - np.asarray(expected, dtype=np.float64))
    assert off.max() <= 2.01
    assert (off > 1.01).mean() < 1e-4


@pytest.mark.parametrize("resize_on", ["cpu", "device"])
@pytest.mark.parametrize("size", [32, 224])
def test_train_sample_is_torchvisions_resized_crop(mixed: VitData, resize_on: str, size: int) -> None:
    images = TrainImages(mixed.train, mixed.train.store, size, seed=3, resize_on=resize_on)
    for index in range(len(images)):
        picture = Image.fromarray(mixed.train.store.image(index))
        box = random_resized_crop(picture.height, picture.width, 3, 1, index)
        expected = resized_crop(picture, *(int(value) for value in box), [size, size], BICUBIC)
        assert_within_a_level(pixels_of(images[1, index], size), np.asarray(expected))


@pytest.mark.parametrize("resize_on", ["cpu", "device"])
@pytest.mark.parametrize("size", [32, 224])
def test_test_sample_is_torchvisions_resize_and_centre_crop(mixed: VitData, resize_on: str, size: int) -> None:
    images = EvalImages(mixed.test, mixed.test.store, size, resize_on=resize_on)
    for index in range(len(images)):
        picture = Image.fromarray(mixed.test.store.image(index))
        expected = center_crop(resize(picture, size, BICUBIC), [size, size])
        assert_within_a_level(pixels_of(images[index], size), np.asarray(expected))


@pytest.mark.parametrize("shape", [(2, 3000), (700, 3), (1, 1)])
def test_extreme_shapes_equal_torchvision_and_need_little_memory(shape: tuple[int, int]) -> None:
    from vit_classify.data import images

    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = center_crop(resize(Image.fromarray(pixels), 16, BICUBIC), [16, 16])
    got = images._resize_center_crop(pixels, 16)
    assert_within_a_level(got.permute(1, 2, 0).numpy().astype(float), np.asarray(expected))


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["dtd", "gtsrb"])
@pytest.mark.parametrize("resize_on", ["cpu", "device"])
def test_real_pictures_equal_the_protocols_transform(
    shared_data: Path, tmp_path: Path, name: str, resize_on: str
) -> None:
    config = DataConfig(
        name="real", source=str(shared_data / name), pixels="decode", store_size=10_000, cache_dir=str(tmp_path)
    )
    data = open_data(config)
    images = EvalImages(data.test, data.test.store, 224, resize_on=resize_on)
    whole = transforms.Compose([transforms.Resize(224, BICUBIC), transforms.CenterCrop(224)])
    for index in range(0, len(images), len(images) // 12):
        file = Path(data.test.source.root) / data.test.describe(index).removeprefix("test/")
        expected = whole(Image.open(file).convert("RGB"))
        assert_within_a_level(pixels_of(images[index], 224), np.asarray(expected))


def test_resizing_on_the_device_equals_resizing_in_the_worker_for_a_padded_batch(mixed: VitData) -> None:
    batches = []
    for where in ("cpu", "device"):
        images = TrainImages(mixed.train, mixed.train.store, 64, seed=0, resize_on=where)  # type: ignore[arg-type]
        batches.append(collate([images[0, index] for index in range(len(images))]))
    worker, device = (DeviceTransform(64, **LEVELS)(batch) for batch in batches)
    assert_within_a_level(worker.numpy(), device.numpy())
    torch.testing.assert_close(batches[0]["labels"], batches[1]["labels"])


def test_pixel_values_are_clip_normalised_float32(mixed: VitData) -> None:
    images = EvalImages(mixed.test, mixed.test.store, 32, resize_on="cpu")
    batch = collate([images[0], images[1]])
    expected = (batch["images"].double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    got = DeviceTransform(32, MEAN, STD)(batch)
    assert got.dtype == torch.float32
    assert got.shape == (2, 3, 32, 32)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)  # float32 at values up to 2.7


@pytest.mark.parametrize("resize_on", ["cpu", "device"])
def test_transform_keeps_its_precision_under_autocast(mixed: VitData, resize_on: str) -> None:
    images = TrainImages(mixed.train, mixed.train.store, 32, seed=0, resize_on=resize_on)
    batch = collate([images[0, index] for index in range(4)])
    transform = DeviceTransform(32, MEAN, STD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = transform(batch)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, transform(batch))


def test_transform_has_nothing_to_save_or_train() -> None:
    transform = DeviceTransform(32, MEAN, STD)
    assert not list(transform.parameters())
    assert not transform.state_dict()


# --- boxes ---------------------------------------------------------------------------------------------------------


def test_a_crop_depends_on_seed_epoch_and_index_alone() -> None:
    first = random_resized_crop(300, 300, 1, 2, 3)
    assert first == random_resized_crop(300, 300, 1, 2, 3)
    others = {random_resized_crop(300, 300, *key) for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0), (2, 1, 3))}
    assert first not in others
    assert len(others) == 4


@pytest.mark.parametrize(("height", "width"), [(224, 224), (300, 400), (10, 200), (200, 10), (1, 1), (7, 3)])
def test_a_crop_lies_inside_the_picture(height: int, width: int) -> None:
    for index in range(200):
        top, left, h, w = random_resized_crop(height, width, 0, 0, index)
        assert h >= 1
        assert w >= 1
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w


@pytest.mark.parametrize(("height", "width"), [(224, 224), (300, 400)])
def test_crops_have_the_distribution_of_torchvisions(height: int, width: int) -> None:
    count = 4000
    torch.manual_seed(0)
    picture = torch.empty(3, height, width)
    draw = transforms.RandomResizedCrop.get_params
    theirs = np.array([draw(picture, [0.9, 1.0], [3 / 4, 4 / 3]) for _ in range(count)], dtype=np.float64)
    ours = np.array([random_resized_crop(height, width, 0, 0, i) for i in range(count)], dtype=np.float64)
    # Kolmogorov–Smirnov distance of two samples of 4000; 0.0437 is its 0.1 % point: 1.95·√(2/4000).
    for column, name in enumerate(("top", "left", "height", "width")):
        grid = np.unique(np.concatenate([ours[:, column], theirs[:, column]]))
        a, b = (np.searchsorted(np.sort(x[:, column]), grid, side="right") / count for x in (ours, theirs))
        assert np.abs(a - b).max() < 0.0437, name


@pytest.mark.parametrize(("height", "width"), [(10, 200), (200, 10), (90, 300)])
def test_crops_of_long_pictures_fall_back_to_the_centre_as_torchvisions(height: int, width: int) -> None:
    expected = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), [0.9, 1.0], [3 / 4, 4 / 3])
    assert tuple(random_resized_crop(height, width, 0, 0, 0)) == tuple(expected)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (256, 341), (100, 333), (50, 20)])
def test_box_of_the_test_transform_is_centred_and_square_in_the_output(height: int, width: int) -> None:
    box = resize_center_crop(height, width, 224)
    short = min(height, width)
    assert box.top >= 0
    assert box.left >= 0
    assert box.height == pytest.approx(short, rel=0.01)  # the longer side is rounded down to whole pixels
    assert box.width == pytest.approx(short, rel=0.01)
    assert box.top + box.height / 2 == pytest.approx(height / 2, abs=0.51 * short / 224)
    assert box.left + box.width / 2 == pytest.approx(width / 2, abs=0.51 * short / 224)


# --- resampling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(61, 33), (300, 97), (20, 500), (375, 500), (24, 24)])
def test_resampling_equals_pillows_two_passes_but_for_ties(height: int, width: int) -> None:
    from vit_classify.data.resample import crop_resize

    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    # Rows first, forced by two calls: left alone, Pillow 13 chooses the order by cost.
    rows = Image.fromarray(pixels).resize((64, height), Image.Resampling.BICUBIC)
    expected = np.asarray(rows.resize((64, 64), Image.Resampling.BICUBIC)).astype(float)
    box = torch.tensor([[0, 0, height, width]], dtype=torch.float64)
    got = crop_resize(torch.from_numpy(pixels)[None], box, torch.tensor([[height, width]]), 64)
    off = np.abs(got[0].permute(1, 2, 0).numpy() - expected)
    assert off.max() <= 1
    assert off.mean() < 1e-3  # Pillow's weights have 22 bits: only values next to a half can differ


class TensorFloat32(TorchDispatchMode):
    """Rounds the factors of matrix products to TF32's 11 bits, as a GPU does where TF32 is allowed."""

    products = 0

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.products += 1
            args = tuple((x.contiguous().view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32) for x in args)
        return func(*args, **(kwargs or {}))


def test_tf32_changes_no_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    canvas = torch.randint(0, 256, (4, 90, 120, 3), dtype=torch.uint8, generator=generator)
    batch = canvas, torch.tensor([[3.0, 5.0, 80.0, 100.0]] * 4, dtype=torch.float64), torch.tensor([[90, 120]] * 4)
    expected = crop_resize(*batch, 64)
    with TensorFloat32() as mode:
        got = crop_resize(*batch, 64)
    assert mode.products
    # plain products in TF32 change 3 % of the values; what is left are ties
    assert (got != expected).float().mean() < 5e-4


def test_cubic_kernel_interpolates_and_sums_to_one() -> None:
    assert cubic(torch.tensor([0.0, 1.0, -1.0, 2.0, 3.0])).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    offsets = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None] + torch.arange(-2, 2)
    torch.testing.assert_close(cubic(offsets).sum(dim=1), torch.ones(11, dtype=torch.float64))
    assert cubic(torch.tensor(0.5)) == 0.5625  # a = -0.5; a = -0.75 would give 0.59375


def test_padding_has_no_weight_and_weights_sum_to_one() -> None:
    start, length, extent = (torch.tensor([float(value)]) for value in (0, 20, 20))
    weights = filter_weights(start.double(), length.double(), extent.long(), canvas=50, size=7)
    assert weights.shape == (1, 7, 50)
    assert not weights[..., 20:].any()
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(1, 7))


def test_whole_picture_at_its_own_size_is_unchanged() -> None:
    from vit_classify.data.resample import crop_resize

    canvas = torch.randint(0, 256, (2, 24, 24, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    box = torch.tensor([[0.0, 0.0, 24.0, 24.0]] * 2, dtype=torch.float64)
    got = crop_resize(canvas, box, torch.full((2, 2), 24), 24)
    assert torch.equal(got, canvas.permute(0, 3, 1, 2).float())


# --- both ways to the pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("store_size", [32, 1000])
def test_cache_and_decoding_give_the_same_batches(
    make_folder: Callable[..., Path], config_of: Callable[..., DataConfig], store_size: int
) -> None:
    root = make_folder({"a": 12, "b": 11}, size=(50, 70), ending=".jpg")
    sets = [open_data(config_of(root, pixels=pixels, store_size=store_size)) for pixels in ("cache", "decode")]
    for split in ("train", "validation", "test"):
        cached, decoded = (getattr(data, split) for data in sets)
        np.testing.assert_array_equal(cached.labels, decoded.labels)
        for i in range(len(cached)):
            assert cached.store.shape(i) == decoded.store.shape(i) == decoded.store.image(i).shape[:2]
            np.testing.assert_array_equal(cached.store.image(i), decoded.store.image(i))
    batches = []
    for data in sets:
        images = TrainImages(data.train, data.train.store, 24, seed=5, resize_on="cpu")
        batches.append(collate([images[2, index] for index in range(len(images))]))
    assert torch.equal(batches[0]["images"], batches[1]["images"])
    assert torch.equal(batches[0]["labels"], batches[1]["labels"])


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_change_nothing(mixed: VitData, context: str) -> None:
    from torch.utils.data import DataLoader

    images = EvalImages(mixed.test, mixed.test.store, 32, resize_on="cpu")
    here = collate([images[i] for i in range(len(images))])["images"]
    loader = DataLoader(
        images, batch_size=len(images), collate_fn=collate, num_workers=1, multiprocessing_context=context
    )
    assert torch.equal(next(iter(loader))["images"], here)


def test_store_is_pickled_by_name_not_by_content(mixed: VitData) -> None:
    import pickle

    mixed.train.store.image(0)  # opens the map
    assert len(pickle.dumps(mixed.train.store)) < 20_000 < sum(w * h * 3 for w, h in SIZES)


def test_an_index_beyond_the_split_ends_iteration(mixed: VitData) -> None:
    images = EvalImages(mixed.test, mixed.test.store, 32, resize_on="cpu")
    assert len(list(images)) == len(images) == 24  # type: ignore[call-overload]
    with pytest.raises(IndexError):
        images[len(images)]
