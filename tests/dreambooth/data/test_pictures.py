"""Crops and what SDXL is told of them, against hand-computed numbers and against Pillow's whole resize."""

import io

import numpy as np
import pytest
from PIL import Image

from common.pictures import resized_size
from dreambooth.data.pictures import Cropping, Variant, crops, draw_variants, look, time_ids
from tests.dreambooth.data.conftest import drawn


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def cropping(**changes: object) -> Cropping:
    return Cropping(**({"resolution": 100, "crop": "center", "flip": False, "variants": 8, "seed": 0} | changes))  # type: ignore[arg-type]


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", exif=exif, quality=95)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (300, 200, [200, 300, 0, 25, 100, 100]),  # scaled to 150 x 100
        (200, 300, [300, 200, 25, 0, 100, 100]),
        (100, 100, [100, 100, 0, 0, 100, 100]),
        (64, 64, [64, 64, 0, 0, 100, 100]),
        (331, 100, [100, 331, 0, 116, 100, 100]),  # (331 - 100) / 2 = 115.5, to the even number
        (1000, 333, [333, 1000, 0, 100, 100, 100]),  # scaled to int(300.3) = 300 x 100
    ],
)
def test_time_ids_of_a_central_crop(width: int, height: int, expected: list[int]) -> None:
    seen = look(encoded(drawn(width, height)))
    (variant,) = draw_variants(seen.height, seen.width, seen.content, cropping())
    assert time_ids(seen.height, seen.width, variant, 100) == expected


def test_original_size_is_the_one_after_the_exif_rotation() -> None:
    seen = look(turned(drawn(300, 200), orientation=6))
    assert (seen.height, seen.width) == (300, 200)
    assert seen.remarks == ("turned upright, as its EXIF data say",)
    (variant,) = draw_variants(seen.height, seen.width, seen.content, cropping())
    assert time_ids(seen.height, seen.width, variant, 100) == [300, 200, 25, 0, 100, 100]


def test_exif_rotation_is_applied_to_the_pixels() -> None:
    upright = crops(encoded(drawn(60, 90)), [Variant(0, 0, False)], 32)
    # orientation 6: the camera was held on its right side, so that the stored picture is turned to the left
    stored = drawn(60, 90).transpose(Image.Transpose.ROTATE_90)
    rotated = crops(turned(stored, orientation=6), [Variant(0, 0, False)], 32)
    assert (upright - rotated).abs().max() < 0.05  # JPEG loses a few levels of 127.5


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (48, 31), (100, 100)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_crop_is_that_of_the_whole_picture_mirrored_scaled_and_cut(size: tuple[int, int], mirrored: bool) -> None:
    image = drawn(*size)
    rows, columns = resized_size(image.height, image.width, 64)
    variant = Variant(top=(rows - 64) * 3 // 4, left=(columns - 64) // 4, mirrored=mirrored)
    whole = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image
    whole = whole.resize((columns, rows), Image.Resampling.LANCZOS)
    box = (variant.left, variant.top, variant.left + 64, variant.top + 64)
    expected = np.asarray(whole.crop(box)).astype(np.float32)
    found = crops(encoded(image), [variant], 64)[0].permute(1, 2, 0).numpy()
    # one level: the box is cut out before rounding to 8 bits in one pass, after it in the other
    assert np.abs((found + 1) * 127.5 - expected).max() <= 1.01


def test_pixels_lie_between_minus_one_and_one() -> None:
    found = crops(encoded(Image.fromarray(np.array([[[0, 128, 255]]], dtype=np.uint8))), [Variant(0, 0, False)], 8)
    assert found.shape == (1, 3, 8, 8)
    assert found[0, :, 0, 0].tolist() == pytest.approx([-1.0, 128 / 127.5 - 1, 1.0], abs=1e-6)


def test_random_crops_stay_inside_and_reach_the_edges() -> None:
    variants = draw_variants(100, 110, "ab", cropping(crop="random", variants=400))
    assert {(variant.top, variant.mirrored) for variant in variants} == {(0, False)}
    assert {variant.left for variant in variants} == set(range(11))


def test_equal_variants_count_once() -> None:
    assert len(draw_variants(100, 150, "ab", cropping())) == 1
    assert len(draw_variants(100, 150, "ab", cropping(flip=True))) == 2
    assert len(draw_variants(100, 100, "ab", cropping(crop="random"))) == 1
    assert len(draw_variants(100, 100, "ab", cropping(crop="random", flip=True))) == 2


@pytest.mark.parametrize("crop", ["center", "random"])
def test_half_of_the_variants_are_mirrored_and_not_the_first_of_every_picture(crop: str) -> None:
    several = [draw_variants(100, 900, f"{i:x}", cropping(crop=crop, flip=True)) for i in range(40)]
    # exactly half, but where one of the places was drawn twice
    assert {round(sum(variant.mirrored for variant in variants) * 2 / len(variants)) for variants in several} == {1}
    assert 8 < sum(variants[0].mirrored for variants in several) < 32


def test_variants_depend_on_the_picture_and_the_seed_alone() -> None:
    first = draw_variants(100, 900, "ab", cropping(crop="random"))
    assert first == draw_variants(100, 900, "ab", cropping(crop="random"))
    assert first[:3] == draw_variants(100, 900, "ab", cropping(crop="random", variants=3))
    assert first != draw_variants(100, 900, "ac", cropping(crop="random"))
    assert first != draw_variants(100, 900, "ab", cropping(crop="random", seed=1))


def test_a_strip_is_never_scaled_up_whole() -> None:
    # whole it would be 512 x 25 600 000 pixels
    assert crops(encoded(drawn(50_000, 1)), [Variant(0, 20_000, False)], 512).shape == (1, 3, 512, 512)


def test_pictures_of_other_kinds_become_rgb_and_say_so() -> None:
    image = drawn(20, 20)
    layer = image.convert("RGBA")
    layer.putalpha(Image.new("L", image.size, 0))
    deep = Image.fromarray(np.full((20, 20), 65535, dtype=np.uint16))
    cases = {
        "transparent: laid on white": encoded(layer),
        "grey, made RGB": encoded(image.convert("L")),
        "16-bit grey, made RGB": encoded(deep),
        "CMYK, made RGB": encoded(Image.new("CMYK", (20, 20)), "JPEG"),
        "black and white, made RGB": encoded(Image.new("1", (20, 20), 1)),
        "animated: its first frame is taken": encoded(
            Image.new("RGB", (20, 20), "white"), "GIF", save_all=True, append_images=[Image.new("RGB", (20, 20), "red")]
        ),
    }
    for remark, data in cases.items():
        assert look(data).remarks == (remark,)
        found = crops(data, [Variant(0, 0, False)], 8)
        if "grey, made" not in remark or "16" in remark:
            assert (found > 0.98).all(), remark  # all of these are white
    assert look(encoded(image.convert("RGBA"))).remarks == ()  # nothing shows through
