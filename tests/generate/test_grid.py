"""The sheet: every picture once, in its place, under its title; what was measured is in the file."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageFont

from mmpretrain.generate.grid import GAP, LINE, MARGIN, MOST, Block, Shape, columns_of, png, sheet, wrapped


def block(n: int, side: int = 32, title: str = "a red circle", labels: bool = True) -> Block:
    pictures = [Image.new("RGB", (side, side), (10 * i, 0, 255)) for i in range(n)]
    return Block(title, pictures, [f"0.{i}" if labels else "" for i in range(n)], 0 if labels else None)


def test_pictures_stand_in_rows():
    made = np.asarray(sheet([block(5)], columns=3))
    width = height = 96  # 32, enlarged
    top = MARGIN + LINE
    for i in range(5):
        row, column = divmod(i, 3)
        y, x = top + row * (height + LINE + GAP), MARGIN + column * (width + GAP)
        assert (made[y : y + height, x : x + width] == (10 * i, 0, 255)).all()
    assert made.shape == (top + 2 * (height + LINE + GAP) + MARGIN, 2 * MARGIN + 3 * width + 2 * GAP, 3)
    below = made[top + height : top + height + LINE, MARGIN : MARGIN + width]
    assert (below != 255).any() and (made[MARGIN - 2 : top, :] != 255).any()  # a label, a title
    blank = np.asarray(sheet([block(5, labels=False, title="")], columns=3))
    assert blank.shape[0] == MARGIN + 2 * (height + GAP) + MARGIN


def test_blocks_stand_below_each_other():
    one, two = block(2, title="first"), block(9, 200, title="a second prompt " * 30)
    both = sheet([one, two])
    assert both.height == sheet([one]).height + sheet([two]).height and both.width == sheet([two]).width


def test_long_titles_are_wrapped():
    font = ImageFont.load_default(size=12)
    lines = wrapped("a large red circle on the left of a small blue square and a star", font, 120)
    assert " ".join(lines) == "a large red circle on the left of a small blue square and a star"
    assert len(lines) > 2 and all(font.getlength(line) <= 120 for line in lines)


def test_words_that_are_too_long_are_broken():
    font = ImageFont.load_default(size=12)
    lines = wrapped("a " + "redcircle" * 20 + " there", font, 120)
    assert "".join(lines).replace(" ", "") == "a" + "redcircle" * 20 + "there"
    assert all(font.getlength(line) <= 120 for line in lines)
    assert wrapped("W", font, 1) == ["W"]


def test_facts_travel_in_the_file():
    data = png(sheet([block(1)]), {"prompts": [{"prompt": "ein grüner Kreis", "scores": [0.25]}]})
    opened = Image.open(io.BytesIO(data))
    assert json.loads(opened.text["mmpretrain"])["prompts"][0] == {"prompt": "ein grüner Kreis", "scores": [0.25]}
    assert png(sheet([block(1)])) == png(sheet([block(1)]))


def test_what_cannot_be_laid_out():
    with pytest.raises(ValueError, match="no picture"):
        sheet([])
    with pytest.raises(ValueError, match="one label"):
        sheet([Block("x", block(2).pictures, ["1"])])
    with pytest.raises(ValueError, match="is more than 16384 a side"):
        sheet([block(200)], columns=200)
    with pytest.raises(ValueError, match="columns=0 must be at least 1"):
        sheet([block(2)], columns=0)


@pytest.mark.parametrize(
    ("n", "side", "prompts", "columns"),
    [(32, 256, 1, 8), (512, 256, 1, 9), (512, 256, 6, 57), (512, 256, 7, None), (1, 256, 70, None), (5, 20000, 1, None)],
)
def test_columns_before_there_is_a_picture(n, side, prompts, columns):
    """512 candidates of 256 pixels, those of the paper, are too high for eight columns."""
    shapes = [Shape("a red circle", n, side, side, True)] * prompts
    if columns is None:
        with pytest.raises(ValueError, match="is more than 16384 a side; ask for fewer pictures"):
            columns_of(shapes)
        return
    assert columns_of(shapes) == columns
    if columns > 8:
        with pytest.raises(ValueError, match=f"{columns - 1} columns, is more than {MOST}"):
            columns_of(shapes, columns - 1)
    assert columns_of(shapes, 20 if prompts == 1 else 60) == (20 if prompts == 1 else 60)


def test_a_shape_is_that_of_the_sheet():
    blocks = [block(7, title="a second prompt " * 9), block(3, 200, labels=False)]
    for columns in (1, 3, 8):
        top = sheet(blocks, columns)
        assert top.height == sum(sheet([one], columns).height for one in blocks)
    assert Shape.of(blocks[1]) == ("a red circle", 3, 200, 200, False)
