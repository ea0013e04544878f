"""A PNG with the pictures of prompts, the prompts as titles and the scores beneath the pictures."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

SIDE = 96  # least width of a picture on the sheet, in pixels; smaller ones are enlarged by a whole factor
COLUMNS = 8
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


def sheet(blocks: Sequence[Block], columns: int = COLUMNS) -> Image.Image:
    """All blocks one below the other.

    Raises:
        ValueError: nothing to show, labels that do not go with the pictures, or more than fits on a sheet.
    """
    if not blocks or any(not block.pictures for block in blocks) or columns < 1:
        raise ValueError("grid: there is no picture to show")
    if any(len(block.pictures) != len(block.labels) for block in blocks):
        raise ValueError("grid: every picture needs one label ('' for none)")
    font = ImageFont.load_default(size=12)
    laid = [_laid(block, columns, font) for block in blocks]
    width, height = max(one.width for one in laid), sum(one.height for one in laid)
    if max(width, height) > MOST:
        raise ValueError(f"grid: a sheet of {width} x {height} pixels is more than {MOST} a side; ask for fewer pictures or prompts")
    made = Image.new("RGB", (width, height), _PAPER)
    top = 0
    for one in laid:
        made.paste(one, (0, top))
        top += one.height
    return made


def _laid(block: Block, columns: int, font: Any) -> Image.Image:
    first = block.pictures[0]
    factor = max(1, math.ceil(SIDE / first.width))
    cell_w, cell_h = first.width * factor, first.height * factor
    columns = min(columns, len(block.pictures))
    rows, line = math.ceil(len(block.pictures) / columns), LINE if any(block.labels) else 0
    width = max(2 * MARGIN + columns * (cell_w + GAP) - GAP, 3 * SIDE)
    title = wrapped(block.title, font, width - 2 * MARGIN)
    top = MARGIN + len(title) * LINE
    made = Image.new("RGB", (width, top + rows * (cell_h + line + GAP) + MARGIN), _PAPER)
    draw = ImageDraw.Draw(made)
    for i, text in enumerate(title):
        draw.text((MARGIN, MARGIN + i * LINE - 2), text, fill=_INK, font=font)
    for i, (picture, label) in enumerate(zip(block.pictures, block.labels, strict=True)):
        row, column = divmod(i, columns)
        x, y = MARGIN + column * (cell_w + GAP), top + row * (cell_h + line + GAP)
        made.paste(picture.convert("RGB").resize((cell_w, cell_h), Image.Resampling.NEAREST), (x, y))
        if label:
            draw.text((x, y + cell_h + 1), label, fill=_BEST if i == block.best else _FAINT, font=font)
    return made


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """The text in lines that are at most ``width`` pixels wide; a word that is too long has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
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
