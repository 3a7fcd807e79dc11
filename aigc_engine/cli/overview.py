"""One picture of everything the zoo makes: three columns of digits, and two passages of text below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from aigc_engine.images import tiles

BACKGROUND, CARD, INK, FAINT, ACCENT = "#0d1117", "#161b22", "#e6edf3", "#8b949e", "#58a6ff"
TILES_PER_ROW, SCALE, GAP = 10, 2, 4
MARGIN, PADDING, CORNER = 40, 24, 14
TITLE_SIZE, HEADING_SIZE, TEXT_SIZE = 56, 28, 23
LINE = 1.4


@dataclass(frozen=True)
class Strip:
    """Images of one kind, ten a row, under a line that says what they are."""

    heading: str
    note: str
    images: Tensor


@dataclass(frozen=True)
class Passage:
    """A generated text after its prompt."""

    heading: str
    note: str
    prompt: str
    text: str


def overview(
    title: str, subtitle: str, columns: Sequence[Sequence[Strip]], passages: Sequence[Passage]
) -> Image.Image:
    """Draws the picture; as wide as three columns of ten tiles, as high as its contents.

    Args:
        columns: the strips of each column, from the top.
        passages: one to three texts, side by side; each is cut to the height of the box.
    """
    tile = columns[0][0].images.shape[-1] * SCALE
    width = TILES_PER_ROW * (tile + GAP) - GAP + 2 * PADDING
    total = MARGIN + len(columns) * (width + MARGIN)
    top = MARGIN + round((TITLE_SIZE + TEXT_SIZE) * LINE) + MARGIN
    height = max(sum(_height(strip, tile) for strip in column) for column in columns) + PADDING
    lines = 6
    box = 2 * PADDING + round(HEADING_SIZE * LINE) + lines * round(TEXT_SIZE * LINE)
    sheet = Image.new("RGB", (total, top + height + MARGIN + box + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, _font(TITLE_SIZE))
    draw.text((MARGIN, MARGIN + round(TITLE_SIZE * LINE)), subtitle, FAINT, _font(TEXT_SIZE))
    for index, column in enumerate(columns):
        left = MARGIN + index * (width + MARGIN)
        draw.rounded_rectangle((left, top, left + width, top + height), CORNER, CARD)
        _column(sheet, draw, column, left + PADDING, top + PADDING, tile)
    share = (total - MARGIN * (len(passages) + 1)) // len(passages)
    for index, passage in enumerate(passages):
        left, at = MARGIN + index * (share + MARGIN), top + height + MARGIN
        draw.rounded_rectangle((left, at, left + share, at + box), CORNER, CARD)
        _passage(draw, passage, left + PADDING, at + PADDING, share - 2 * PADDING, lines)
    return sheet


def _height(strip: Strip, tile: int) -> int:
    rows = -(-len(strip.images) // TILES_PER_ROW)
    return round(HEADING_SIZE * LINE) + GAP + rows * (tile + GAP) + PADDING


def _column(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, strips: Sequence[Strip], left: int, top: int, tile: int
) -> None:
    for strip in strips:
        _heading(draw, strip.heading, strip.note, left, top)
        start = top + round(HEADING_SIZE * LINE) + GAP
        for index, picture in enumerate(tiles(strip.images, SCALE)):
            row, column = divmod(index, TILES_PER_ROW)
            sheet.paste(picture, (left + column * (tile + GAP), start + row * (tile + GAP)))
        top += _height(strip, tile)


def _heading(draw: ImageDraw.ImageDraw, heading: str, note: str, left: int, top: int) -> None:
    font = _font(HEADING_SIZE)
    draw.text((left, top), heading, INK, font)
    # Both on one baseline: the note's smaller letters start lower.
    at = (left + font.getlength(heading) + 14, top + (HEADING_SIZE - TEXT_SIZE) * 0.75)
    draw.text(at, note, FAINT, _font(TEXT_SIZE))


def _passage(
    draw: ImageDraw.ImageDraw, passage: Passage, left: int, top: int, width: int, lines: int
) -> None:
    _heading(draw, passage.heading, passage.note, left, top)
    font, top = _font(TEXT_SIZE), top + round(HEADING_SIZE * LINE) + GAP
    written = 0
    for line in wrap(passage.prompt + passage.text, font, width)[:lines]:
        ours = max(0, min(len(line), len(passage.prompt) - written))
        draw.text((left, top), line[:ours], ACCENT, font)
        draw.text((left + font.getlength(line[:ours]), top), line[ours:], INK, font)
        top += round(TEXT_SIZE * LINE)
        written += len(line) + 1


def wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines of whole words no wider than `width`; newlines end a line too."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
