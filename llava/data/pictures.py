"""The pictures of conversations: where they lie, whether they can be read, and their pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from PIL import Image

from common.pictures import MAX_PIXELS, DecodeError, decode, read_size, verify

Check = Literal["decode", "header", "none"]
# `decode` finds all that `header` finds, and `header` all that `none` finds.
CHECKS: tuple[Check, ...] = ("none", "header", "decode")

# OCR-VQA's list calls every picture .jpg; its script kept the format that it found.
ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
MISSING = "there is no such picture"
OUTSIDE = "a link that leads out of the image root"
# Begins the reason of a picture that could not be read, in contrast to one that was and is none.
UNREADABLE = "cannot be read: "
_HEADER = 1 << 16


class Stamp(NamedTuple):
    """A picture's file, as far as its folder tells: who has read a file once need not read it again.

    Args:
        name: its path under the root as it is on the disk, "" where there is none.
        size: bytes.
        modified: time in nanoseconds.
        problem: why it cannot be used, "" where nothing is known against it.
    """

    name: str
    size: int
    modified: int
    problem: str


def find(root: str, name: str) -> Stamp:
    """Look for a picture under the image root, also under the endings of other formats.

    Args:
        root: the image root, without links in its path.
        name: from `rules.normalise`, relative and without `..`.
    """
    for candidate in (name, *_other_endings(name)):
        path = os.path.join(root, candidate)
        try:
            info = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            return Stamp("", 0, 0, f"{UNREADABLE}{getattr(error, 'strerror', None) or error}")
        if not _stays_inside(root, candidate):
            return Stamp("", 0, 0, OUTSIDE)
        if not os.path.isfile(path):
            return Stamp("", 0, 0, "a folder, not a picture" if os.path.isdir(path) else "not a file")
        return Stamp(candidate, info.st_size, info.st_mtime_ns, "" if info.st_size else "the file is empty")
    return Stamp("", 0, 0, MISSING)


def problem_of(root: str, stamp: Stamp, check: Check) -> str:
    """Why a picture that was found cannot be used, "" where it can.

    Args:
        root: the image root.
        stamp: from `find`.
        check: `decode` unpacks all of it, `header` reads its format and size, `none` takes it as it is.
    """
    if stamp.problem or check == "none":
        return stamp.problem
    try:
        with open(os.path.join(root, stamp.name), "rb") as file:
            if check == "header":
                try:
                    read_size(file.read(_HEADER))
                except DecodeError:  # metadata can be longer than any sensible beginning
                    file.seek(0)
                    read_size(file.read())
            else:
                verify(file.read())
    except OSError as error:
        return f"{UNREADABLE}{error.strerror or error}"
    except DecodeError as error:
        return str(error)
    return ""


def load_picture(root: str, name: str) -> Image.Image:
    """A picture as upright 8-bit RGB (see `common.pictures.decode`).

    One whose longer side would make the square that it is padded to larger than `MAX_PIXELS` (50 000 x 1) is made
    smaller.

    Raises:
        DecodeError: it cannot be read.
    """
    try:
        with open(os.path.join(root, name), "rb") as file:
            image = Image.fromarray(decode(file.read()))
    except OSError as error:
        raise DecodeError(f"{UNREADABLE}{error.strerror or error}") from error
    return within_square(image)


def within_square(image: Image.Image) -> Image.Image:
    """The picture, made smaller where the square around it would have more than `MAX_PIXELS`."""
    side = int(MAX_PIXELS**0.5)
    if max(image.size) <= side:
        return image
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _other_endings(name: str) -> Sequence[str]:
    stem, ending = os.path.splitext(name)
    if ending.lower() not in ENDINGS:
        return ()
    return [stem + other for known in ENDINGS for other in (known, known.upper()) if other != ending]


def _stays_inside(root: str, name: str) -> bool:
    """Whether a picture lies under the root.

    Data sets often lie on several disks, with a link in the root to each: a link to a folder that stands directly in
    the root is the user's own arrangement and followed; any link further down must stay within that folder.
    """
    folder, slash, rest = name.partition("/")
    base = _real(os.path.join(root, folder)) if slash else root
    path = os.path.join(base, rest if slash else folder)
    real = os.path.join(_real(os.path.dirname(path)), os.path.basename(path))
    if os.path.islink(path):
        real = os.path.realpath(path)
    return os.path.commonpath([base, real]) == base


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)
