"""Contact sheets: layout, markers, wrapping."""

import numpy as np
import pytest
from PIL import Image

from scripts.demos.contact_sheet import (
    BAR,
    GREEN,
    RED,
    Line,
    Mark,
    Tile,
    contact_sheet,
)

BLUE = (20, 60, 200)


def blank_image(width: int = 60, height: int = 40) -> Image.Image:
    return Image.new("RGB", (width, height), BLUE)


def has(sheet: Image.Image, color: tuple[int, int, int]) -> bool:
    return bool((np.asarray(sheet) == color).all(axis=-1).any())


def test_layout_grows_by_columns_and_rows():
    one, four, five = (contact_sheet([Tile(blank_image(), "What?")] * n, columns=4, tile_width=100) for n in (1, 4, 5))
    assert one.height == four.height < five.height
    assert one.width < four.width == five.width
    assert one.mode == "RGB"


def test_margins_are_white():
    pixels = np.asarray(contact_sheet([Tile(blank_image(), "A question", ["an answer"], True)] * 3, columns=2))
    for edge in (pixels[:10], pixels[-10:], pixels[:, :10], pixels[:, -10:]):
        assert (edge == 255).all()


@pytest.mark.parametrize(("correct", "green", "red"), [(True, True, False), (False, False, True), (None, False, False)])
def test_right_is_green_and_wrong_is_red(correct, green, red):
    sheet = contact_sheet([Tile(blank_image(), "title", correct=correct)])
    assert (has(sheet, GREEN), has(sheet, RED)) == (green, red)


def test_long_text_wraps_and_makes_the_tile_taller():
    short = contact_sheet([Tile(blank_image(), "word", ["word"])], tile_width=120)
    long = contact_sheet([Tile(blank_image(), "word " * 30, ["x" * 200])], tile_width=120)
    assert long.width == short.width
    assert long.height > short.height + 100


def test_marks_are_scaled_with_the_image_and_leave_it_unchanged():
    image = blank_image()
    color = (250, 200, 10)
    sheet = contact_sheet([Tile(image, "", marks=[Mark((30, 20, 50, 35), "star 0.9", color)])], tile_width=240)
    rows, columns = np.nonzero((np.asarray(sheet) == color).all(axis=-1))
    left, top = 24 + 4 * 30, 24 + 4 * 20  # after the sheet's margin
    assert left == columns.min()
    assert top > rows.min() > top - 30  # the label stands on the box
    assert not has(image, color)


@pytest.mark.parametrize(("share", "width"), [(1.0, 200), (0.5, 100), (0.0, 0), (None, 0)])
def test_a_line_has_a_bar_behind_it(share, width):
    sheet = contact_sheet([Tile(blank_image(), "title", [Line("x", share=share)])], tile_width=200)
    bars = (np.asarray(sheet) == BAR).all(axis=-1)
    assert bars.any(axis=0).sum() == pytest.approx(width, abs=1)


def test_a_line_has_a_colour_of_its_own_in_every_part():
    color = (120, 10, 200)
    tiles = [[Tile(blank_image(), "title", [Line("word " * n, color)])] for n in (1, 40)]
    short, long = ((np.asarray(contact_sheet(t)) == color).all(axis=-1).any(axis=1).sum() for t in tiles)
    assert long > 3 * short > 0


def test_image_from_a_path(tmp_path):
    blank_image().save(tmp_path / "p.png")
    from_path = contact_sheet([Tile(tmp_path / "p.png", "title")])
    assert np.array_equal(np.asarray(from_path), np.asarray(contact_sheet([Tile(blank_image(), "title")])))


def test_no_tiles_is_an_error():
    with pytest.raises(ValueError, match="at least one tile"):
        contact_sheet([])
