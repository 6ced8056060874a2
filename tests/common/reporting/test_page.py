"""The HTML page, read back with the standard library's parser."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from common.reporting.page import Code, Facts, Figure, Figures, Page, Section, Text, render_page, write_page
from common.reporting.tables import Column, Row, Table

VOID = {"meta", "link", "img", "br"}


class Outline(HTMLParser):
    """Collects tags and attributes, and checks that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return path


def full_page(picture: Path, text: str = "text") -> Page:
    table = Table([Column(text), Column("accuracy")], [Row((text, 1.0), text), Row(("b", 2.0), text)], text)
    blocks = (
        Text(f"{text}\n\n{text}"),
        Facts({text: text}),
        Facts({text: text}, large=True),
        Code(text),
        table,
        Figures([Figure(picture, text, text), Figure(picture, "second")]),
    )
    sections = [Section(f"{text} {index}", blocks, folded=index == 3) for index in range(4)]
    return Page(text, text, sections, text)


def test_every_kind_of_block_is_on_the_page(picture: Path) -> None:
    page = Outline(render_page(full_page(picture)))
    for tag, count in {"table": 4, "figure": 8, "dl": 8, "pre": 4, "section": 3, "details": 1, "footer": 1}.items():
        assert len(page.all(tag)) == count, tag


def test_page_refers_to_nothing_outside_itself(picture: Path) -> None:
    html = render_page(full_page(picture))
    page = Outline(html)
    assert not page.all("script")
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in page.all("img"))
    assert all(str(link["href"]).startswith(("#", "data:")) for link in page.all("a") + page.all("link"))
    assert "http:" not in html
    assert "https:" not in html
    assert "default-src 'none'" in html


def test_every_picture_has_a_text_and_a_size(picture: Path) -> None:
    for image in Outline(render_page(full_page(picture))).all("img"):
        assert image["alt"]
        assert (image["width"], image["height"]) == ("40", "30")


def test_text_from_data_cannot_become_markup(picture: Path) -> None:
    evil = "<script>alert(1)</script><b>\"'&amp;{{ 7*7 }}"
    page = Outline(render_page(full_page(picture, evil)))
    assert not page.all("script")
    assert not page.all("b")
    assert evil in page.text
    assert any(image["alt"] == evil for image in page.all("img"))


def test_the_best_cell_is_marked_and_numbers_are_flush_right(picture: Path) -> None:
    cells = Outline(render_page(full_page(picture))).all("td")
    assert [cell.get("class") for cell in cells[:2]] == ["number", "number best"]


def test_links_lead_to_every_section(picture: Path) -> None:
    page = Outline(render_page(full_page(picture, "Größe & Maß")))
    anchors = {section["id"] for section in page.all("section") + page.all("details")}
    assert {str(link["href"])[1:] for link in page.all("a")} == anchors
    assert len(anchors) == 4


def test_two_sections_of_one_name_are_our_bug() -> None:
    with pytest.raises(AssertionError, match="share a heading"):
        render_page(Page("page", sections=[Section("same", ()), Section("Same", ())]))


@pytest.mark.parametrize("name", ["gone.png", "table.txt", "broken.png"])
def test_a_picture_that_cannot_be_shown_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page = Page("page", sections=[Section("a", [Figures([Figure(tmp_path / name, "alt")])])])
    with pytest.raises(UserError, match=name):
        render_page(page)


def test_a_page_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = write_page(tmp_path / "page.html", Page("old"))
    bad = Page("new", sections=[Section("a", [Figures([Figure(tmp_path / "gone.png", "alt")])])])
    with pytest.raises(UserError):
        write_page(path, bad)
    assert "old" in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
