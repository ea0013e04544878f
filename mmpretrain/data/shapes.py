"""Sizes of pictures, numbers of regions and grids of codes from headers alone, for the index: nothing is decoded or inflated."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

from PIL import Image

from mmpretrain.data.codes import code_grid
from mmpretrain.data.decode import FORMATS
from mmpretrain.data.errors import BadSample
from mmpretrain.data.regions import region_counts

_ORIENTATION = 0x0112
_MOST = (1 << 32) - 1


def picture(data: bytes) -> tuple[int, int]:
    """Height and width of a picture, upright by its EXIF orientation; (0, 0) where the header cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            turned = "exif" in image.info and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # noqa: BLE001  a damaged file fails in Pillow in many ways; it is named when the sample is read
        return 0, 0


def joined(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Height and width of pictures side by side."""
    return min(max((height for height, _ in sizes), default=0), _MOST), min(sum(width for _, width in sizes), _MOST)


def regions(data: bytes | None) -> int:
    """The number of regions of ``KEY.regions.npz``; 0 where there is none or it cannot be read."""
    if data is None:
        return 0
    try:
        return region_counts(data)[0]
    except BadSample:
        return 0


def codes(data: bytes | None) -> tuple[int, int]:
    """Rows and columns of ``KEY.codes.npy``; (0, 0) where there is none or it cannot be read."""
    if data is None:
        return 0, 0
    try:
        return code_grid(data)
    except BadSample:
        return 0, 0
