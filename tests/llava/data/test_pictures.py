"""Each kind of picture, and of path, that a data set may hold."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.pictures import DecodeError
from llava.data.pictures import MISSING, OUTSIDE, find, load_picture, problem_of
from llava.data.samples import pixels_of
from tests.llava.data.conftest import SIZE, Base, picture


def problem(root: Path, name: str, check: str = "decode") -> str:
    return problem_of(str(root), find(str(root), name), check)  # type: ignore[arg-type]


def test_picture_is_found_and_sound(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.jpg")
    assert find(str(tmp_path), "a.jpg").name == "a.jpg"
    assert problem(tmp_path, "a.jpg") == problem(tmp_path, "a.jpg", "header") == ""


@pytest.mark.parametrize("ending", [".gif", ".png", ".GIF", ".jpeg"])
def test_picture_under_another_ending_is_found(tmp_path: Path, ending: str) -> None:
    picture(0).convert("P").convert("RGB").save(tmp_path / f"a{ending}")
    assert find(str(tmp_path), "a.jpg").name == f"a{ending}"


def test_picture_that_is_there_is_never_replaced_by_another(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "a.jpg").write_bytes(b"damaged")
    assert find(str(tmp_path), "a.jpg").name == "a.jpg"
    assert "not a picture" in problem(tmp_path, "a.jpg")


def test_gif_named_jpg_is_read_by_its_content(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.jpg")
    assert problem(tmp_path, "a.jpg") == ""


@pytest.mark.parametrize("name", ["none.jpg", "a/none.jpg", "file/x.jpg", "x" * 300 + ".jpg"])
def test_missing_picture_has_a_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    assert problem(tmp_path, name, "none") in (MISSING, "cannot be read: File name too long")


def test_folder_pipe_and_empty_file_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    (tmp_path / "b.jpg").touch()
    os.mkfifo(tmp_path / "c.jpg")
    assert [problem(tmp_path, f"{name}.jpg", "none") for name in "abc"] == [
        "a folder, not a picture",
        "the file is empty",
        "not a file",
    ]


def test_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "coco").mkdir(parents=True)
    (outside / "deep").mkdir(parents=True)
    picture(0).save(outside / "deep" / "a.jpg")
    (root / "a.jpg").symlink_to(outside / "deep" / "a.jpg")
    (root / "coco" / "a.jpg").symlink_to("../../outside/deep/a.jpg")
    (root / "coco" / "deep").symlink_to(outside / "deep")
    for name in ("a.jpg", "coco/a.jpg", "coco/deep/a.jpg"):
        assert problem(root, name, "none") == OUTSIDE, name


def test_folder_of_the_root_may_be_a_link_to_another_disk_but_no_further(tmp_path: Path) -> None:
    root, disk = tmp_path / "root", tmp_path / "disk"
    root.mkdir()
    (disk / "in").mkdir(parents=True)
    picture(0).save(disk / "in" / "a.jpg")
    picture(0).save(tmp_path / "secret.jpg")
    (disk / "in" / "b.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "coco").symlink_to(disk)
    assert problem(root, "coco/in/a.jpg") == ""
    assert problem(root, "coco/in/b.jpg") == OUTSIDE


def test_link_within_the_root_is_followed(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    picture(0).save(tmp_path / "coco" / "a.jpg")
    (tmp_path / "coco" / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert problem(tmp_path, "coco/b.jpg") == ""
    assert problem(tmp_path, "loop.jpg").startswith("cannot be read: ")


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp"])
def test_file_that_is_cut_short_is_found_by_unpacking_only(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    picture(0, 200, 300).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    assert problem(tmp_path, path.name, "decode") != ""
    assert problem(tmp_path, path.name, "header") == "" or ending == "webp"


def test_verifying_refuses_just_what_reading_refuses(tmp_path: Path) -> None:
    """Damage in every place of a file; a picture that passed can be read."""
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF"):
        path = tmp_path / "a.jpg"
        for _ in range(60):
            picture(0, 40, 60).save(path, kind)
            data = bytearray(path.read_bytes())
            place = int(rng.integers(len(data)))
            data[place : place + 3] = rng.bytes(3) if rng.random() < 0.7 else b""
            path.write_bytes(bytes(data))
            try:
                load_picture(str(tmp_path), "a.jpg")
                readable = True
            except DecodeError:
                readable = False
            assert (problem(tmp_path, "a.jpg") == "") == readable


def rgb(root: Path, name: str) -> np.ndarray:
    assert problem(root, name) == ""
    image = load_picture(str(root), name)
    assert image.mode == "RGB"
    assert pixels_of(Base.image_processor, image).shape == (3, SIZE, SIZE)
    return np.asarray(image)


def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 6), "red")
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    clear = Image.new("RGBA", (8, 6), (255, 0, 0, 0)).quantize()
    clear.save(tmp_path / "palette.png", transparency=0)
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((6, 8), 65535, dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", (8, 6), 7).save(tmp_path / "grey.png")
    assert np.abs(rgb(tmp_path, "cmyk.jpg").astype(int) - [255, 0, 0]).max() <= 4  # JPEG
    assert (rgb(tmp_path, "palette.png") == 255).all()  # clear on white
    assert (rgb(tmp_path, "animated.gif") == [255, 0, 0]).all()  # the first frame
    assert (rgb(tmp_path, "deep.png") == 255).all()
    assert (rgb(tmp_path, "grey.png") == 7).all()


@pytest.mark.parametrize("size", [(50_000, 1), (1, 50_000)])
def test_line_of_50000_pixels_does_not_fill_the_memory(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "line.png")
    assert problem(tmp_path, "line.png") == ""
    image = load_picture(str(tmp_path), "line.png")
    assert max(image.size) ** 2 <= 100_000_000
    assert min(image.size) == 1


def test_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    for check in ("header", "decode"):
        assert "12000x12000 pixels are more than the limit" in problem(tmp_path, "bomb.png", check)


def padded_by_hand(image: Image.Image) -> np.ndarray:
    """LLaVA's `expand2square` and CLIP's preprocessing with Pillow, (3, S, S)."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 255
    mean, std = np.array(Base.image_processor.image_mean), np.array(Base.image_processor.image_std)
    return ((pixels - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (3, 3), (3, 40), (40, 3), (1, 40), (40, 1), (4, 4), (64, 48), (28, 28)]
)
def test_pixels_equal_llavas_also_where_the_height_looks_like_channels(tmp_path: Path, width: int, height: int) -> None:
    picture(0, height, width).save(tmp_path / "a.png")
    image = load_picture(str(tmp_path), "a.png")
    # float32 against float64
    np.testing.assert_allclose(pixels_of(Base.image_processor, image), padded_by_hand(image), atol=1e-5)


def test_picture_is_padded_to_a_square_with_the_mean_colour(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "white").save(tmp_path / "a.png")
    pixels = pixels_of(Base.image_processor, load_picture(str(tmp_path), "a.png"))
    mean, std = np.array(Base.image_processor.image_mean), np.array(Base.image_processor.image_std)
    corner = (pixels[:, 0, 0].numpy() * std + mean) * 255
    np.testing.assert_allclose(corner, [122, 116, 104], atol=1e-3)  # LLaVA's colour, exact but for float32
