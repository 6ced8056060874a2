"""One self-contained HTML page out of sections of text, tables and pictures.

The page needs no network, no script and no other file: styles are inline, pictures are data URIs, and a
content security policy in its head makes the browser hold it to that. It follows the reader's light or
dark setting, fits a phone, and prints. Everything that comes from data is escaped by jinja2.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image, UnidentifiedImageError

from common.errors import UserError
from common.files import atomic_write
from common.pictures import MAX_PIXELS, encoded
from common.reporting.tables import Table

MOST_SIDE = 2048  # of an embedded picture in pixels; a larger one is embedded smaller, which its caption says

_MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Text:
    """Plain text; an empty line begins a new paragraph."""

    text: str

    @property
    def paragraphs(self) -> list[str]:
        """The paragraphs, without empty ones."""
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]


@dataclass(frozen=True)
class Facts:
    """Names and their values, such as the environment of a run or the few numbers that matter most.

    Args:
        items: name -> value.
        large: set the values large, side by side.
    """

    items: Mapping[str, str]
    large: bool = False


@dataclass(frozen=True)
class Code:
    """Commands or a configuration, set as they are."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A picture file with what it shows.

    Args:
        path: PNG, JPEG, WebP or SVG file; it is embedded, the page does not refer to it.
        alt: the content of the picture in words, for readers who cannot see it.
        caption: text under the picture.
    """

    path: Path
    alt: str
    caption: str = ""

    @property
    def uri(self) -> str:
        """The file as a data URI.

        Raises:
            UserError: the file is missing or is not a picture of a known kind.
        """
        media, content, *_ = self._embedded
        return f"data:{media};base64,{base64.b64encode(content).decode('ascii')}"

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) in pixels, so that the page does not jump while it loads; None for SVG.

        Raises:
            UserError: the file is missing or is not a picture of a known kind.
        """
        return self._embedded[2]

    @property
    def text(self) -> str:
        """The caption, and that the picture was made smaller where it was."""
        return " ".join(filter(None, (self.caption, self._embedded[3])))

    @cached_property
    def _embedded(self) -> tuple[str, bytes, tuple[int, int] | None, str]:
        """Media type, content and size of what is put into the page, and a remark where that is not the whole."""
        content, kind = self._content(), self.path.suffix.lower()
        if kind == ".svg":
            return _MEDIA_TYPES[kind], content, None, ""
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(f"the picture {self.path} has more than {MAX_PIXELS:,} pixels; make it smaller")
                image.load()  # a file that is cut short opens, and shows as half a picture
                if max(image.size) <= MOST_SIDE:
                    return _MEDIA_TYPES[kind], content, image.size, ""
                whole = image.size
                small = image.convert("RGB")
                small.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
            raise UserError(f"the picture {self.path} is broken; was it copied whole?") from None
        remark = f"(Shown smaller than its {whole[0]} × {whole[1]} pixels.)"
        return "image/webp", encoded(small, "WEBP", quality=85), small.size, remark

    def _content(self) -> bytes:
        if self.path.suffix.lower() not in _MEDIA_TYPES:
            raise UserError(f"{self.path} cannot be put into a page; use one of {', '.join(_MEDIA_TYPES)}")
        if not self.path.is_file():
            raise UserError(f"the picture {self.path} is missing; was it moved or deleted after the run?")
        return self.path.read_bytes()


@dataclass(frozen=True)
class Figures:
    """Pictures side by side where there is room, below each other on a phone.

    Args:
        figures: the pictures.
        width: least width of one picture in CSS pixels; small for grids of samples.
    """

    figures: Sequence[Figure]
    width: int = 380


@dataclass(frozen=True)
class Heading:
    """A heading inside a section; what follows it belongs to it."""

    text: str


@dataclass(frozen=True)
class Exchange:
    """A question and its answer.

    Args:
        question: what was asked.
        answer: what was said.
        figure: the picture that was asked about; None: none.
        expected: the known answer; empty: none is known.
        right: whether the answer is right; None where nobody has judged it.
    """

    question: str
    answer: str
    figure: Figure | None = None
    expected: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Exchanges:
    """Questions and answers as a chat, each beside its picture."""

    items: Sequence[Exchange]


@dataclass(frozen=True)
class Folded:
    """Blocks under a line that opens them; closed until then, printed all the same."""

    summary: str
    blocks: Sequence[Block]


Block = Text | Facts | Code | Table | Figures | Heading | Exchanges | Folded


@dataclass(frozen=True)
class Section:
    """A part of the page under its own heading.

    Args:
        title: the heading; two sections of a page must not have the same.
        blocks: the content, top to bottom.
        folded: closed until the reader opens it (printed all the same).
    """

    title: str
    blocks: Sequence[Block]
    folded: bool = False

    @property
    def anchor(self) -> str:
        """The part of an address that leads here."""
        return re.sub(r"[^\w]+", "-", self.title.lower()).strip("-") or "section"


@dataclass(frozen=True)
class Page:
    """A whole page.

    Args:
        title: heading and window title.
        lead: what the page says, in a sentence or two.
        sections: the content; from four sections on a list of links leads to them.
        footer: where the numbers come from, when, and with which versions.
        language: the language of the text, for screen readers and hyphenation.
    """

    title: str
    lead: str = ""
    sections: Sequence[Section] = field(default_factory=tuple)
    footer: str = ""
    language: str = "en"


def without_broken(section: Section, told: list[str]) -> Section | None:
    """A section without the pictures that cannot be shown; None where nothing else is in it.

    Args:
        section: as it was made.
        told: takes what is wrong with each.
    """
    blocks = _sound(section.blocks, told)
    return replace(section, blocks=blocks) if any(not isinstance(block, Heading) for block in blocks) else None


def _sound(blocks: Sequence[Block], told: list[str]) -> list[Block]:
    found: list[Block] = []
    for block in blocks:
        if isinstance(block, Figures):
            figures = [figure for figure in block.figures if _can_be_shown(figure, told)]
            found += [replace(block, figures=figures)] if figures else []
        elif isinstance(block, Exchanges):
            items = [
                item if item.figure is None or _can_be_shown(item.figure, told) else replace(item, figure=None)
                for item in block.items
            ]
            found.append(Exchanges(items))
        elif isinstance(block, Folded):
            inner = _sound(block.blocks, told)
            found += [replace(block, blocks=inner)] if inner else []
        else:
            found.append(block)
    return found


def _can_be_shown(figure: Figure, told: list[str]) -> bool:
    try:
        return bool(figure.uri)
    except UserError as error:
        told.append(str(error))
    except OSError as error:
        told.append(f"the picture {figure.path} cannot be read: {error.strerror}")
    return False


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("common.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The template asks a block for its kind; a test goes through every kind.
    environment.filters["kind"] = lambda block: type(block).__name__
    return environment.get_template("page.html")


def render_page(page: Page) -> str:
    """The page as HTML text.

    Raises:
        UserError: a picture is missing or of an unknown kind.
    """
    anchors = [section.anchor for section in page.sections]
    assert len(set(anchors)) == len(anchors), f"two sections share a heading: {anchors}"
    return _template().render(page=page)


def write_page(path: Path, page: Page) -> Path:
    """Render the page and write it in one go, so that no half page is ever seen.

    Returns:
        `path`.

    Raises:
        UserError: a picture is missing or of an unknown kind.
    """
    html = render_page(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a file's name need not be UTF-8, and is shown as far as it goes
    atomic_write(path, html.encode(errors="backslashreplace"))
    return path
