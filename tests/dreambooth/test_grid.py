"""Sheets of pictures: where things lie, and that labels fit."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFont

from dreambooth.grid import GAP, Columns, SheetRow, draw_sheet, thumbnail, wrap
from dreambooth.grid_pages import write_grids
from tests.eval.subjects.tiny import make_set

FONT = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 14)
RED, BLUE = (Image.new("RGB", (64, 64), colour) for colour in ((255, 0, 0), (0, 0, 255)))


def spots(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """left, top, right, bottom (exclusive) of all pixels of a colour."""
    where = np.argwhere((np.asarray(sheet) == colour).all(2))
    (top, left), (bottom, right) = where.min(0), where.max(0) + 1
    return int(left), int(top), int(right), int(bottom)


def test_pictures_lie_in_rows_and_columns() -> None:
    columns = [Columns("lora", ["seed 0", "seed 1"]), Columns("moslora", ["seed 0", "seed 1"])]
    rows = [SheetRow("a dog", [RED, None, None, None]), SheetRow("a cat", [None, None, None, BLUE])]
    sheet = draw_sheet(columns, rows, side=64)
    red, blue = spots(sheet, (255, 0, 0)), spots(sheet, (0, 0, 255))
    assert (red[2] - red[0], red[3] - red[1]) == (64, 64)
    assert blue[1] == red[3] + GAP
    assert blue[0] - red[0] == 3 * 64 + 2 * GAP + 4 * GAP  # groups stand apart


def test_missing_pictures_are_said_and_not_left_blank() -> None:
    sheet = draw_sheet([Columns("", ["seed 0"])], [SheetRow("a dog", [None])], side=64)
    assert spots(sheet, (232, 232, 232))[2] - spots(sheet, (232, 232, 232))[0] == 64


def test_a_long_prompt_makes_its_row_higher_and_nothing_overlaps() -> None:
    long = "a very long prompt about a dog that wears a hat " * 8
    sheet = draw_sheet([Columns("", ["s"])], [SheetRow(long, [RED]), SheetRow("short", [BLUE])], side=64)
    red, blue = spots(sheet, (255, 0, 0)), spots(sheet, (0, 0, 255))
    assert blue[1] - red[3] > 100
    assert red[3] - red[1] == 64


@pytest.mark.parametrize("text", ["a dog in the snow " * 5, "x" * 200, "a " + "y" * 90 + " b", "", "word"])
def test_wrapped_lines_fit_and_lose_nothing(text: str) -> None:
    lines = wrap(text, FONT, 120)
    assert all(FONT.getlength(line) <= 120 for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_small_drawings_are_enlarged_without_smoothing_and_large_ones_made_small() -> None:
    drawing = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    large = np.asarray(thumbnail(drawing, 100))
    assert large.shape == (96, 96, 3)
    assert (large[::6, ::6] == np.asarray(drawing)).all()
    assert thumbnail(Image.new("RGB", (1024, 512)), 100).size == (100, 50)


def test_grids_of_a_folder_are_a_picture_for_each_subject_and_one_page_that_needs_no_other_file(tmp_path: Path) -> None:
    for adapter in ("base", "lora"):
        for subject in ("duck", "rex"):
            make_set(tmp_path, adapter, subject, first=10 * len(adapter))
    (tmp_path / "lora" / "rex" / "01_1.png").unlink()
    (tmp_path / "lora" / "rex" / "01_0.png").write_text("no picture")
    page, *sheets = write_grids(tmp_path)
    assert page == tmp_path / "grids.html"
    assert [path.relative_to(tmp_path).as_posix() for path in sheets] == ["grids/duck.png", "grids/rex.png"]
    html = page.read_text()
    assert "a zqx toy in the jungle" in html
    assert "base, lora" in html
    assert html.count("data:image/webp") == 2 * (2 + 1)  # two prompts and the real pictures, of each subject
    assert 'src="grids' not in html
    whole, lacking = (np.asarray(Image.open(sheet)) for sheet in sheets)
    assert not (whole == 232).all(2).any()
    assert (lacking == 232).all(2).sum() > 2 * 100 * 100
