"""Sheets of pictures with labels: rows and columns of thumbnails as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

GAP, MARGIN, LABEL_WIDTH, FONT_SIZE = 4, 12, 190, 14
_INK, _SOFT, _PAPER, _EMPTY = (27, 31, 36), (87, 96, 106), (255, 255, 255), (232, 232, 232)


@dataclass(frozen=True)
class Columns:
    """Columns that stand together under a heading.

    Args:
        heading: above them; empty: none.
        labels: one for each column.
    """

    heading: str
    labels: Sequence[str]


@dataclass(frozen=True)
class SheetRow:
    """A row of a sheet.

    Args:
        label: on its left; a long one is wrapped.
        pictures: one for each column of the sheet, or fewer; None: there is none, which is said.
        labelled: False for a row that the columns' labels do not mean, such as real pictures above the made ones.
    """

    label: str
    pictures: Sequence[Image.Image | None]
    labelled: bool = True


def draw_sheet(
    columns: Sequence[Columns], rows: Sequence[SheetRow], *, side: int = 128, title: str = ""
) -> Image.Image:
    """Lay pictures out in rows and columns with their labels, on white.

    Args:
        columns: groups of columns, left to right.
        rows: top to bottom; those that are not labelled come first.
        side: of a thumbnail in pixels. Smaller pictures are enlarged without smoothing by a whole factor.
        title: above all.

    Returns:
        An RGB picture.
    """
    assert rows == sorted(rows, key=lambda row: row.labelled), "rows without labels come first"
    font, bold = _font("DejaVuSans.ttf", FONT_SIZE), _font("DejaVuSans-Bold.ttf", FONT_SIZE)
    labels = [wrap(row.label, font, LABEL_WIDTH) for row in rows]
    widest = max((font.getlength(text) for lines in labels for text in lines), default=0)
    lefts = _lefts(columns, side, MARGIN + round(widest) + MARGIN)
    line = _line_height(font)
    heights = [max(side, line * len(lines)) for lines in labels]
    named = any(group.heading for group in columns)
    head = (line * (1 + named) + GAP) * any(row.labelled for row in rows)
    top = MARGIN + (2 * line if title else 0)
    width = lefts[-1] + side + MARGIN
    title_lines = wrap(title, bold, width - 2 * MARGIN) if title else []
    top += line * max(0, len(title_lines) - 1)
    sheet = Image.new("RGB", (width, top + sum(heights) + GAP * len(rows) + head + MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (MARGIN, MARGIN), title_lines, bold, _INK)
    headed = False
    for row, lines, height in zip(rows, labels, heights, strict=True):
        if row.labelled and not headed:
            _draw_head(draw, columns, lefts, top, side, named)
            top, headed = top + head, True
        _write(draw, (MARGIN, top + max(0, (height - line * len(lines)) // 2)), lines, font, _INK)
        for left, picture in zip(lefts, row.pictures, strict=False):
            _place(sheet, draw, picture, (left, top + (height - side) // 2), side)
        top += height + GAP
    return sheet


def _lefts(columns: Sequence[Columns], side: int, left: int) -> list[int]:
    found: list[int] = []
    for group in columns:
        found += [left + index * (side + GAP) for index in range(len(group.labels))]
        left = found[-1] + side + 4 * GAP  # groups stand apart
    return found


def _draw_head(
    draw: ImageDraw.ImageDraw, columns: Sequence[Columns], lefts: Sequence[int], top: int, side: int, named: bool
) -> None:
    font, bold = _font("DejaVuSans.ttf", FONT_SIZE), _font("DejaVuSans-Bold.ttf", FONT_SIZE)
    line, number = _line_height(font), 0
    for group in columns:
        first, last = lefts[number], lefts[number + len(group.labels) - 1] + side
        if group.heading:
            draw.text((first, top), _shortened(group.heading, bold, last - first), font=bold, fill=_INK)
        for label in group.labels:
            at = (lefts[number], top + line * named)
            draw.text(at, _shortened(label, font, side), font=font, fill=_SOFT)
            number += 1


def _place(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image | None, at: tuple[int, int], side: int
) -> None:
    if picture is not None:
        small = thumbnail(picture, side)
        sheet.paste(small, (at[0] + (side - small.width) // 2, at[1] + (side - small.height) // 2))
        return
    draw.rectangle((*at, at[0] + side - 1, at[1] + side - 1), fill=_EMPTY)
    font = _font("DejaVuSans.ttf", FONT_SIZE - 2)
    draw.text((at[0] + side / 2, at[1] + side / 2), "missing", font=font, fill=_SOFT, anchor="mm")


def thumbnail(picture: Image.Image, side: int) -> Image.Image:
    """A picture scaled to fit a square of `side` pixels, RGB; one that is much smaller keeps its hard edges."""
    picture = picture.convert("RGB")
    longer = max(picture.size)
    if longer * 2 <= side:
        factor = side // longer
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    scale = side / longer
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Text as lines of at most `width` pixels; a word that is longer is cut into pieces."""
    lines, line = [], ""
    for word in text.split():
        while font.getlength(word) > width:
            cut = next((end for end in range(len(word) - 1, 1, -1) if font.getlength(word[:end]) <= width), 1)
            if line:
                lines.append(line)
                line = ""
            lines.append(word[:cut])
            word = word[cut:]
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line] if line else lines


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont,
    colour: tuple[int, int, int],
) -> None:
    for number, line in enumerate(lines):
        draw.text((at[0], at[1] + number * _line_height(font)), line, font=font, fill=colour)


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return round(font.size * 1.3)


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", file)), size)  # ships with it
