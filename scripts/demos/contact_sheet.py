"""A sheet of images with text under them, as one image: questions, answers of a model, and the right answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

WHITE, INK, GREY = (255, 255, 255), (32, 33, 36), (95, 99, 104)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
GREEN, RED, FRAME = (30, 142, 62), (217, 48, 37), (218, 220, 224)
BAR = (232, 240, 254)  # pale, behind text
MARGIN, GAP, BORDER, BADGE_SIZE = 24, 24, 3, 22
TITLE_SIZE, LINE_SIZE, LABEL_SIZE = 17, 15, 13


@dataclass(frozen=True)
class Mark:
    """A box to draw over an image, xyxy in pixels of the original image, with an optional label."""

    box: tuple[float, float, float, float]
    label: str = ""
    color: Color = GREEN


@dataclass(frozen=True)
class Line:
    """A line of text under an image. share: length of a bar behind it, from 0 to 1; None for no bar."""

    text: str
    color: Color = GREY
    share: float | None = None


@dataclass(frozen=True)
class Tile:
    """One image of the sheet.

    title: in larger type. lines: below the title; both wrap. correct: True draws a green frame and a tick, False a red
    frame and a cross, None neither. marks: drawn over the image.
    """

    image: Image.Image | Path | str
    title: str
    lines: Sequence[str | Line] = ()
    correct: bool | None = None
    marks: Sequence[Mark] = ()


def contact_sheet(tiles: Sequence[Tile], columns: int = 4, tile_width: int = 260) -> Image.Image:
    """The tiles in rows of `columns`, each image scaled to fit a square of `tile_width` pixels.

    Raises ValueError for no tiles.
    """
    if not tiles:
        raise ValueError("a contact sheet needs at least one tile")
    columns = min(columns, len(tiles))
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    drawn_rows = [_draw_row(row, tile_width) for row in rows]
    heights = [max(tile.height for tile in row) for row in drawn_rows]
    width = 2 * MARGIN + columns * tile_width + (columns - 1) * GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + sum(heights) + (len(rows) - 1) * GAP), WHITE)
    y = MARGIN
    for row, height in zip(drawn_rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (MARGIN + column * (tile_width + GAP), y))
        y += height + GAP
    return sheet


def _draw_row(row: Sequence[Tile], width: int) -> list[Image.Image]:
    """The tiles of one row. The lower borders of the images are aligned, and so is the text."""
    images = [_fit(_open(tile.image), tile.marks, width) for tile in row]
    frame_height = max(image.height for image in images)
    return [_draw_tile(tile, image, width, frame_height) for tile, image in zip(row, images, strict=True)]


def _draw_tile(tile: Tile, image: Image.Image, width: int, frame_height: int) -> Image.Image:
    indent = 0 if tile.correct is None else BADGE_SIZE + 8
    title = _wrap(tile.title, _font(TITLE_SIZE), width - indent)
    lines = [part for line in tile.lines for part in _wrap_line(line, width - indent)]
    title_step, line_step = TITLE_SIZE + 5, LINE_SIZE + 5
    top = frame_height + 10
    lines_top = top + len(title) * title_step + 2
    canvas = Image.new("RGB", (width, lines_top + len(lines) * line_step), WHITE)
    draw = ImageDraw.Draw(canvas)
    y = frame_height - image.height
    canvas.paste(image, (0, y))
    color = FRAME if tile.correct is None else GREEN if tile.correct else RED
    border = 1 if tile.correct is None else BORDER
    draw.rectangle((0, y, image.width - 1, frame_height - 1), outline=color, width=border)
    if tile.correct is not None:
        badge = _badge(tile.correct)
        canvas.paste(badge, (0, top), badge)
    for i, part in enumerate(title):
        draw.text((indent, top + i * title_step), part, INK, _font(TITLE_SIZE))
    for i, line in enumerate(lines):
        y = lines_top + i * line_step
        if line.share:
            draw.rectangle((indent, y, indent + line.share * (width - indent - 1), y + line_step - 2), fill=BAR)
        draw.text((indent, y), line.text, line.color, _font(LINE_SIZE))
    return canvas


def _fit(image: Image.Image, marks: Sequence[Mark], width: int) -> Image.Image:
    """The image scaled to fit a square of `width`, with sharp marks drawn at the final size."""
    scale = width / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    font = _font(LABEL_SIZE)
    for mark in marks:
        x1, y1, x2, y2 = (value * scale for value in mark.box)
        draw.rectangle((x1, y1, x2, y2), outline=mark.color, width=2)
        if mark.label:
            label_width, label_height = font.getlength(mark.label) + 8, LABEL_SIZE + 5
            left = max(0, min(x1, image.width - label_width))
            top = y1 - label_height if y1 >= label_height else y1  # inside the box if there is no room above
            draw.rectangle((left, top, left + label_width, top + label_height), fill=mark.color)
            draw.text((left + 4, top + label_height / 2), mark.label, WHITE, font, anchor="lm")
    return image


@lru_cache(maxsize=2)
def _badge(correct: bool) -> Image.Image:
    """A round tick or cross on a transparent ground, drawn large and reduced for smooth edges."""
    scale = 4
    side = BADGE_SIZE * scale
    badge = Image.new("RGBA", (side, side), (*WHITE, 0))
    draw = ImageDraw.Draw(badge)
    draw.ellipse((0, 0, side - 1, side - 1), fill=GREEN if correct else RED)
    if correct:
        strokes = [[(0.28, 0.53), (0.44, 0.68), (0.73, 0.35)]]
    else:
        strokes = [[(0.33, 0.33), (0.67, 0.67)], [(0.67, 0.33), (0.33, 0.67)]]
    for stroke in strokes:
        draw.line([(x * side, y * side) for x, y in stroke], fill=WHITE, width=10, joint="curve")
    return badge.reduce(scale)


def _wrap_line(line: str | Line, width: int) -> list[Line]:
    """The parts of a line, each with its colour and bar."""
    line = Line(line) if isinstance(line, str) else line
    return [replace(line, text=part) for part in _wrap(line.text, _font(LINE_SIZE), width)]


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """The text in lines of at most `width` pixels; a word too long for one line is split."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".lstrip()
        if font.getlength(candidate) <= width:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines


@lru_cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _open(image: Image.Image | Path | str) -> Image.Image:
    """An RGB copy, so that drawing never changes the caller's image."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    with Image.open(image) as opened:
        return opened.convert("RGB")
