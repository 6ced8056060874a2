"""Every kind of picture file as upright 8-bit RGB."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from common import pictures as decoding
from common.pictures import DecodeError, decode

RNG = np.random.default_rng(0)
PIXELS = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((40, 30), Image.Resampling.BICUBIC)
)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("PPM", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_lossless_formats_come_back_exactly(kind: str, options: dict) -> None:
    np.testing.assert_array_equal(decode(encode(Image.fromarray(PIXELS), kind, **options)), PIXELS)


def test_jpeg_equals_pillow_at_full_size() -> None:
    data = encode(Image.fromarray(PIXELS), "JPEG", quality=90)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data) == [255, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    # The stored grid is the upright one under the inverse of the tag's operation (EXIF 2.3, tag 0x0112).
    inverse = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(inverse[orientation](PIXELS))
    np.testing.assert_array_equal(decode(encode(Image.fromarray(stored), "PNG", exif=exif)), PIXELS)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\0\x09"]
)
def test_broken_exif_data_do_not_make_a_picture_unreadable(exif: bytes) -> None:
    data = encode(Image.fromarray(PIXELS), "JPEG", exif=exif)
    np.testing.assert_array_equal(decode(data), decode(encode(Image.fromarray(PIXELS), "JPEG")))


def test_unknown_orientation_is_no_rotation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    np.testing.assert_array_equal(decode(encode(Image.fromarray(PIXELS), "PNG", exif=exif)), PIXELS)


def test_greyscale_becomes_three_equal_channels() -> None:
    grey = PIXELS[..., 0]
    np.testing.assert_array_equal(decode(encode(Image.fromarray(grey), "PNG")), np.stack([grey] * 3, axis=2))


def test_16_bit_greyscale_is_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(32, 32)
    expected = np.round(values / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF", "PPM"):
        got = decode(encode(Image.fromarray(values), kind))
        np.testing.assert_array_equal(got, np.stack([expected] * 3, axis=2), err_msg=kind)


def test_transparency_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    rgba.putpixel((1, 1), (0, 0, 255, 255))
    palette = rgba.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    clear = palette.getpixel((0, 0))
    for data in (
        encode(rgba, "PNG"),
        encode(rgba, "WEBP", lossless=True),
        encode(palette, "PNG", transparency=clear),
        encode(palette, "GIF", transparency=clear),
        encode(rgba.convert("RGB"), "PNG", transparency=(255, 0, 0)),
    ):
        pixels = decode(data)
        assert (pixels[0, 0] == 255).all()
        np.testing.assert_array_equal(pixels[1, 1], [0, 0, 255])
    grey = Image.new("LA", (2, 2), (0, 0))
    assert (decode(encode(grey, "PNG")) == 255).all()
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert abs(int(decode(encode(half, "PNG"))[0, 0, 0]) - 127) <= 1


def test_cmyk_becomes_rgb() -> None:
    data = encode(Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK"), "JPEG", quality=100)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    np.testing.assert_allclose(decode(data)[8, 8].astype(int), [200, 30, 60], atol=4)  # JPEG's loss


def test_one_bit_pictures_are_black_and_white() -> None:
    bits = Image.fromarray(PIXELS[..., 0] > 128)
    assert set(np.unique(decode(encode(bits, "PNG")))) == {0, 255}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no picture at all", "not a picture"),
        (encode(Image.fromarray(PIXELS), "JPEG")[:-200], "truncated"),
        (encode(Image.fromarray(PIXELS), "PNG")[:-300], "."),
        (encode(Image.fromarray(PIXELS), "PPM")[:-7], "."),
        (encode(Image.fromarray(PIXELS), "JPEG")[:20], "."),
    ],
)
def test_damaged_bytes_are_an_error_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode(data)


def test_formats_with_active_content_are_refused() -> None:
    with pytest.raises(DecodeError, match="not a picture"):
        decode(encode(Image.fromarray(PIXELS), "EPS"))


def _png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [11_000, 60_000])
def test_decompression_bombs_are_refused_before_they_are_unpacked(side: int) -> None:
    with pytest.raises(DecodeError, match=r"limit|bomb"):
        decode(_png_that_claims(side, side))


def test_size_limit_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", PIXELS.shape[0] * PIXELS.shape[1])
    decode(encode(Image.fromarray(PIXELS), "PNG"))
    monkeypatch.setattr(decoding, "MAX_PIXELS", PIXELS.shape[0] * PIXELS.shape[1] - 1)
    with pytest.raises(DecodeError, match="40x30"):
        decode(encode(Image.fromarray(PIXELS), "PNG"))
