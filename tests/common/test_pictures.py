"""The two quicker looks at a picture, its file and its size; `test_pictures_decode.py` has `decode` itself."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.pictures import DecodeError, decode, encoded, read_file, read_size, verify


def noise(kind: str, mode: str = "RGB", size: tuple[int, int] = (300, 200)) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("GIF", "P"), ("WEBP", "RGB")]
)
def test_sound_pictures_pass_with_their_size(kind: str, mode: str) -> None:
    data = noise(kind, mode)
    assert verify(data) == read_size(data) == (200, 300)
    assert decode(data).shape == (200, 300, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_picture_that_is_cut_short_is_found_without_unpacking_it_at_full_size(kind: str) -> None:
    data = noise(kind)
    for look in (decode, verify):
        with pytest.raises(DecodeError):
            look(data[: len(data) // 2])
    assert read_size(data[: len(data) // 2]) == (200, 300)


@pytest.mark.parametrize("look", [verify, read_size])
@pytest.mark.parametrize(("data", "reason"), [(b"", "empty"), (b"<html>", "not a picture"), (b"%!PS-Adobe", "not a")])
def test_what_is_no_picture_has_a_reason(look, data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        look(data)


@pytest.mark.parametrize("look", [verify, read_size])
def test_bombs_are_refused(look) -> None:
    with pytest.raises(DecodeError, match="pixels"):
        look(noise("PNG", "1", (20_000, 10_000)))


def test_a_written_picture_holds_its_pixels_and_nothing_else() -> None:
    image = Image.effect_noise((30, 20), 50).convert("RGB")
    image.info["comment"] = "made by somebody"
    data = encoded(image)
    assert b"somebody" not in data
    assert np.array_equal(decode(data), np.asarray(image))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="no regular file"):
        read_file(tmp_path / "a.png")
