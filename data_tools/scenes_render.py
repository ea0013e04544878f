"""Pixels and boxes of a world: masks in exact integer arithmetic, painted and encoded with Pillow.

A thing is painted at four times the size with masks that are 0 or 255 (exact in every version of Pillow), then each 4 x 4 block is
averaged, in integers. No float, no font and no curve or line of a library touches the pixels.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from mmpretrain.data_tools.scenes_world import COLOURS, SIDE, Thing, World

OVERSAMPLING = 4
TURNS = ((41, 0), (40, 9), (40, -9))  # 41 * (cos, sin) of 0 and of +-12.7 degrees: a Pythagorean triple, so exact
_STAR = ((0, -1000), (265, -364), (951, -309), (428, 139), (588, 809), (0, 450), (-588, 809), (-428, 139), (-951, -309), (-265, -364))
_HEART_HALF = ((11, -511), (78, -655), (233, -802), (459, -868), (702, -808), (890, -634), (960, -392), (890, -137), (702, 103),
               (459, 321), (233, 522), (78, 697))
_CORNERS = {
    "square": ((-790, -790), (790, -790), (790, 790), (-790, 790)),
    "triangle": ((0, -900), (930, 740), (-930, 740)),
    "star": tuple((x, y + 60) for x, y in _STAR),
    "cross": ((-320, -920), (320, -920), (320, -320), (920, -320), (920, 320), (320, 320), (320, 920), (-320, 920), (-320, 320),
              (-920, 320), (-920, -320), (-320, -320)),
    "heart": ((0, -452), *_HEART_HALF, (0, 822), *((-x, y) for x, y in reversed(_HEART_HALF))),
}  # in thousandths of the radius
_CIRCLE = 900


class Stamp(NamedTuple):
    """Masks of one kind of thing at the oversampled size, cut to its bounding box, and where the box lies from the centre."""

    outline: Image.Image  # everything that is painted
    fill: Image.Image
    pattern: Image.Image | None  # painted in the second colour over the fill
    hole: Image.Image | None  # shows the background
    dx: int
    dy: int


def _inside(shape: str, radius: int, turn: int) -> np.ndarray:
    """bool (2P, 2P), P = radius * 5 / 4 subpixels: which subpixel centres lie in the shape."""
    pad = radius * 5 // 4 + 1
    axis = (2 * np.arange(2 * pad, dtype=np.int64) + 1 - 2 * pad) * 1000  # subpixel centres in 1/2000 of a subpixel
    px, py = axis[None, :], axis[:, None]
    if shape == "circle":
        return px * px + py * py <= (2 * _CIRCLE * radius) ** 2
    cos, sin = TURNS[turn]
    corners = [((cos * x - sin * y) * 2 * radius // 41, (sin * x + cos * y) * 2 * radius // 41) for x, y in _CORNERS[shape]]
    inside = np.zeros((2 * pad, 2 * pad), dtype=bool)
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        crossed = (y1 > py) != (y2 > py)
        side = (px - x1) * (y2 - y1) - (x2 - x1) * (py - y1)
        inside ^= crossed & ((side < 0) if y2 > y1 else (side > 0))  # even-odd rule
    return inside


def _mask(bits: np.ndarray) -> Image.Image:
    return Image.fromarray(bits.astype(np.uint8) * 255)


def _shrunk(mask: Image.Image, by: int) -> Image.Image:
    framed = Image.new("L", (mask.width + 2, mask.height + 2))
    framed.paste(mask, (1, 1))
    for _ in range(by):
        framed = framed.filter(ImageFilter.MinFilter(3))
    return framed.crop((1, 1, 1 + mask.width, 1 + mask.height))


@lru_cache(maxsize=4096)
def stamp(shape: str, material: str, radius: int, turn: int, scale: int) -> Stamp:
    """``radius`` in subpixels; ``scale`` is the number of subpixels of 1/64 of the side (4 for 64 px), which sets line widths."""
    bits = _inside(shape, radius, turn)
    rows, columns = np.flatnonzero(bits.any(1)), np.flatnonzero(bits.any(0))
    top, left, pad = int(rows[0]), int(columns[0]), len(bits) // 2
    bits = bits[top : rows[-1] + 1, left : columns[-1] + 1]
    outline = _mask(bits)
    fill = _shrunk(outline, max(1, scale * 5 // 8))
    y, x = np.arange(bits.shape[0])[:, None] + top - pad, np.arange(bits.shape[1])[None, :] + left - pad
    pattern = hole = None
    if material == "striped":
        period = max(2, scale * 4)
        pattern = _mask(np.asarray(fill, dtype=bool) & ((x + y) % period < period * 9 // 20))
    elif material == "dotted":
        period = max(2, scale * 15 // 4)
        row = y // period  # rows of dots above and below the centre, every second one moved by half a period
        u, v = (x + (row % 2) * (period // 2)) % period * 2 - period, y % period * 2 - period
        pattern = _mask(np.asarray(fill, dtype=bool) & (u * u + v * v <= (period * 5 // 8) ** 2))
    elif material == "hollow":
        fill, hole = outline, _shrunk(outline, max(2, radius * 19 // 100))  # a rim of the colour alone
    return Stamp(outline, fill, pattern, hole, left - pad, top - pad)


def _place(thing: Thing, size: int) -> tuple[Stamp, int, int]:
    """The stamp of a thing in a picture of ``size`` px and its top left corner in subpixels."""
    side = size * OVERSAMPLING
    found = stamp(thing.shape, thing.material, max(4, thing.radius * side // SIDE), thing.turn, max(1, side // 64))
    return found, thing.x * side // SIDE + found.dx, thing.y * side // SIDE + found.dy


def render(world: World, size: int = 64) -> Image.Image:
    """The picture, RGB, ``size`` x ``size`` px."""
    side = size * OVERSAMPLING
    canvas = Image.new("RGB", (side, side), world.background)
    for thing in world.things:
        masks, x, y = _place(thing, size)
        colour = COLOURS[thing.colour]
        canvas.paste(tuple(c * 5 // 8 for c in colour), (x, y), masks.outline)
        canvas.paste(colour, (x, y), masks.fill)
        if masks.pattern is not None:
            bright = sum(c * w for c, w in zip(colour, (3, 6, 1), strict=True)) > 1800
            canvas.paste(tuple(c // 3 for c in colour) if bright else (255, 255, 255), (x, y), masks.pattern)
        if masks.hole is not None:
            canvas.paste(world.background, (x, y), masks.hole)
    return canvas.reduce(OVERSAMPLING)  # (sum of 16 + 8) // 16 in integers, which a test holds


def png(image: Image.Image) -> bytes:
    """The file; the same bytes for one version of Pillow and its zlib."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def boxes(world: World, size: int = 64) -> list[list[int]]:
    """[x, y, width, height] of every thing: the smallest box of whole pixels that holds all that is painted of it."""
    found = []
    for thing in world.things:
        masks, x, y = _place(thing, size)
        left, top = x // OVERSAMPLING, y // OVERSAMPLING
        right, bottom = -(-(x + masks.outline.width) // OVERSAMPLING), -(-(y + masks.outline.height) // OVERSAMPLING)
        found.append([left, top, right - left, bottom - top])
    return found
