"""A picture file → its bytes → upright 8-bit RGB, and back.

H, W: height and width in pixels, after the EXIF rotation.
"""

from __future__ import annotations

import errno
import io
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from common.words import first_line

# Only these parsers see foreign bytes; Pillow's others (EPS runs Ghostscript) stay shut.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP")
# What files of these formats are called.
ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".pbm", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
# A picture of more pixels is a decompression bomb or a mistake (300 MB in memory).
MAX_PIXELS = 100_000_000

# The EXIF tag, and what makes a picture with its value upright. Pillow's `exif_transpose` would also rewrite the EXIF
# data, which fails on broken ones.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


Result = TypeVar("Result")


class DecodeError(ValueError):
    """The bytes are no picture that can be read; the message is the reason in a few words."""


def read_file(path: Path) -> bytes:
    """A regular file's content; anything else, such as a pipe, is an OSError."""
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
        raise OSError(errno.EINVAL, "it is no regular file")
    return path.read_bytes()


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """A picture as the content of a file: pixels, and nothing else that is known of it."""
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def resized_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Height and width of a picture whose shorter side is made `shorter`, rounded as torchvision's `Resize` does."""
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def decode(data: bytes) -> np.ndarray:
    """Decode one picture.

    The EXIF orientation is applied; of an animation the first frame counts; transparency is laid on white, as a
    viewer would show it; 16-bit greyscale is scaled to 8 bits (not clipped); CMYK becomes RGB. JPEG is decoded at
    full size (no draft mode).

    Args:
        data: the file's content: JPEG, PNG, PPM/PGM/PBM, BMP, GIF, TIFF or WebP.

    Returns:
        pixels (H, W, 3) uint8, RGB.

    Raises:
        DecodeError: empty, truncated, not one of the formats, or larger than `MAX_PIXELS`.
    """
    return np.asarray(_guarded(data, lambda image: _to_rgb(_upright(_loaded(image)))))


def verify(data: bytes) -> tuple[int, int]:
    """Find out whether `decode` would succeed, faster where that is possible, and the stored size.

    A JPEG is unpacked whole but at an eighth of its size, which finds a file that is cut short just as well.

    Args:
        data: as for `decode`.

    Returns:
        height and width, before the EXIF rotation.

    Raises:
        DecodeError: as `decode`.
    """

    def check(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        if image.format == "JPEG":
            image.draft(None, (max(1, width // 8), max(1, height // 8)))
            image.load()
        else:
            _to_rgb(_loaded(image))
        return height, width

    return _guarded(data, check)


def read_size(data: bytes) -> tuple[int, int]:
    """Height and width from a picture's header, before the EXIF rotation; the pixels are not looked at.

    Args:
        data: the file's content, or its beginning.

    Raises:
        DecodeError: the header is not one of `FORMATS`, or promises more than `MAX_PIXELS`.
    """
    return _guarded(data, lambda image: (image.size[1], image.size[0]))


def _guarded(data: bytes, use: Callable[[Image.Image], Result]) -> Result:
    """Open a picture and give it to `use`; whatever goes wrong is a DecodeError."""
    if not data:
        raise DecodeError("the file is empty")
    try:
        # Pillow warns of odd metadata and of pictures over its own limit, without a name: thousands of useless lines.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(image.size)
            return use(image)
    except (DecodeError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise DecodeError(f"not a picture in one of the formats {', '.join(FORMATS)}") from None
    # Pillow's parsers raise OSError, SyntaxError, struct.error and many more on damaged bytes.
    except Exception as error:
        raise DecodeError(first_line(error)) from error


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return image


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{width}x{height} pixels are more than the limit of {MAX_PIXELS:,}")
    if width * height == 0:
        raise DecodeError(f"it has no pixels ({width}x{height})")


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What makes an opened picture upright, by its EXIF data; None where it is, or where they cannot be read."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF data do not make the pixels unreadable
        return None


def _upright(image: Image.Image) -> Image.Image:
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # I, I;16, I;16B, I;16L: Pillow's convert would clip these at 255
        return _scale_to_8_bits(image).convert("RGB")
    if image.mode == "F":
        raise DecodeError("floating-point pixels have no known range")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DecodeError(f"grey values from {values.min()} to {values.max()} exceed 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 = 255 · 257, rounded
