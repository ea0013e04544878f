"""A PNG with the pictures of prompts, the prompts as titles and the scores beneath the pictures."""

from __future__ import annotations

import io
import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

SIDE = 96  # least width of a picture on the sheet, in pixels; smaller ones are enlarged by a whole factor
COLUMNS = 8  # where none are asked for, and the sheet is not too high
GAP, LINE, MARGIN = 6, 16, 8
MOST = 16384  # pixels of a side of the sheet
KEY = "mmpretrain"  # of the text in the PNG
_INK, _FAINT, _PAPER, _BEST = (29, 28, 26), (110, 106, 100), (255, 255, 255), (11, 122, 91)


class Block(NamedTuple):
    """The pictures of one prompt."""

    title: str
    pictures: Sequence[Image.Image]  # of one size, in the order shown
    labels: Sequence[str]  # one for each; "" for none
    best: int | None = None  # the picture whose label is marked


class Shape(NamedTuple):
    """What a block takes up, known before there is a picture."""

    title: str
    n: int  # pictures
    width: int  # of each
    height: int
    labelled: bool  # whether there is a line beneath the pictures

    @classmethod
    def of(cls, block: Block) -> Shape:
        return cls(block.title, len(block.pictures), *block.pictures[0].size, any(block.labels))


class _Layout(NamedTuple):
    """Where the parts of a block stand, in pixels."""

    title: list[str]
    cell: tuple[int, int]
    columns: int
    top: int  # of the first row
    row: int  # from one row to the next
    size: tuple[int, int]


def columns_of(shapes: Sequence[Shape], columns: int | None = None) -> int:
    """The columns of a sheet: the wanted ones; None: 8, or as many more as it takes for the sheet to be no higher than it may be.

    Raises:
        ValueError: no column, or more than fits on a sheet.
    """
    if columns is not None and columns < 1:
        raise ValueError(f"grid: columns={columns} must be at least 1")
    font, remedy = _font(), "ask for other columns, or fewer pictures or prompts"
    if columns is None:
        remedy = "ask for fewer pictures or prompts at a time"
        cell = max(_laid(shape, 1, font).cell[0] for shape in shapes)
        most = max(COLUMNS, min(max(shape.n for shape in shapes), (MOST - 2 * MARGIN + GAP) // (cell + GAP)))
        tried = range(COLUMNS, most + 1)
        found = bisect_left(tried, True, key=lambda number: _size(shapes, number, font)[1] <= MOST)
        columns = tried[min(found, len(tried) - 1)]
    width, height = _size(shapes, columns, font)
    if max(width, height) > MOST:
        raise ValueError(f"grid: a sheet of {width} x {height} pixels, {columns} columns, is more than {MOST} a side; {remedy}")
    return columns


def _font() -> Any:
    return ImageFont.load_default(size=12)


def _size(shapes: Sequence[Shape], columns: int, font: Any) -> tuple[int, int]:
    sizes = [_laid(shape, columns, font).size for shape in shapes]
    return max(width for width, _ in sizes), sum(height for _, height in sizes)


def sheet(blocks: Sequence[Block], columns: int | None = None) -> Image.Image:
    """All blocks one below the other; for ``columns`` see :func:`columns_of`.

    Raises:
        ValueError: nothing to show, labels that do not go with the pictures, or more than fits on a sheet.
    """
    if not blocks or any(not block.pictures for block in blocks):
        raise ValueError("grid: there is no picture to show")
    if any(len(block.pictures) != len(block.labels) for block in blocks):
        raise ValueError("grid: every picture needs one label ('' for none)")
    font, columns = _font(), columns_of([Shape.of(block) for block in blocks], columns)
    drawn = [_drawn(block, columns, font) for block in blocks]
    made = Image.new("RGB", (max(one.width for one in drawn), sum(one.height for one in drawn)), _PAPER)
    top = 0
    for one in drawn:
        made.paste(one, (0, top))
        top += one.height
    return made


def _laid(shape: Shape, columns: int, font: Any) -> _Layout:
    factor = max(1, math.ceil(SIDE / shape.width))
    cell_w, cell_h = shape.width * factor, shape.height * factor
    columns = min(columns, shape.n)
    row = cell_h + (LINE if shape.labelled else 0) + GAP
    width = max(2 * MARGIN + columns * (cell_w + GAP) - GAP, 3 * SIDE)
    title = wrapped(shape.title, font, width - 2 * MARGIN)
    top = MARGIN + len(title) * LINE
    return _Layout(title, (cell_w, cell_h), columns, top, row, (width, top + math.ceil(shape.n / columns) * row + MARGIN))


def _drawn(block: Block, columns: int, font: Any) -> Image.Image:
    laid = _laid(Shape.of(block), columns, font)
    cell_w, cell_h = laid.cell
    made = Image.new("RGB", laid.size, _PAPER)
    draw = ImageDraw.Draw(made)
    for i, text in enumerate(laid.title):
        draw.text((MARGIN, MARGIN + i * LINE - 2), text, fill=_INK, font=font)
    for i, (picture, label) in enumerate(zip(block.pictures, block.labels, strict=True)):
        row, column = divmod(i, laid.columns)
        x, y = MARGIN + column * (cell_w + GAP), laid.top + row * laid.row
        made.paste(picture.convert("RGB").resize((cell_w, cell_h), Image.Resampling.NEAREST), (x, y))
        if label:
            draw.text((x, y + cell_h + 1), label, fill=_BEST if i == block.best else _FAINT, font=font)
    return made


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """The text in lines that are at most ``width`` pixels wide; a word that is longer is broken."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        while font.getlength(word) > width and len(word) > 1:
            whole = max(1, bisect_left(range(1, len(word)), True, key=lambda end: font.getlength(word[:end]) > width))
            lines.append(word[:whole])
            word = word[whole:]
        lines.append(word)
    return lines


def png(image: Image.Image, facts: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of a PNG file; ``facts`` go into its text chunk ``mmpretrain`` as JSON."""
    info = PngInfo()
    if facts is not None:
        info.add_itxt(KEY, json.dumps(facts, ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
