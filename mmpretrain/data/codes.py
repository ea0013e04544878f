"""``KEY.codes.npy``: a picture as tokens of a discrete autoencoder. Schema, reader and writer.

One array of numpy, version 1.0 of the format: type ``<u2``, C order, shape (h, w), the grid in raster order. Ids run from 0 to K - 1; K is
in the ``codes.json`` beside the shards (:mod:`mmpretrain.data.codes_info`). Nothing is unpickled and numpy's own reader is not called:
the header must have exactly this form, and the size that it announces must be that of the file, before a byte of the array is looked at.
"""

from __future__ import annotations

import re

import numpy as np

from mmpretrain.data.errors import BadSample

MAX_SIDE = 4096  # rows, columns
MAX_CODES = 1 << 20  # of a picture
MAX_KNOWN = 1 << 16  # K that ids of 16 bits can tell
_HEAD_MOST = 1024  # bytes of the header
MAX_FILE = _HEAD_MOST + 2 * MAX_CODES
_MAGIC = b"\x93NUMPY\1\0"
_HEAD = re.compile(  # spaces alone, no leading zeros: what numpy reads as well
    rb"\{ *'descr': *'([^']{1,32})', *'fortran_order': *(True|False), *"
    rb"'shape': *\(((?:(?:0|[1-9]\d{0,9}), *)*(?:0|[1-9]\d{0,9})?)\),? *\} *\n?"
)


def code_grid(data: bytes) -> tuple[int, int]:
    """(h, w) of a file, from its header alone.

    Raises:
        BadSample: the file breaks the schema in a way that its header and its size show.
    """
    return _header(data)[1]


def decode_codes(data: bytes, known: int = MAX_KNOWN) -> np.ndarray:
    """The codes of a file, checked: uint16 (h, w). They share no memory with ``data``.

    Args:
        data: a whole ``KEY.codes.npy``.
        known: K; ids must be below it.

    Raises:
        BadSample: naming the reason.
    """
    start, grid = _header(data)
    ids = np.frombuffer(data, "<u2", offset=start).reshape(grid).astype(np.uint16)
    if (most := int(ids.max())) >= known:
        raise BadSample(f"codes: the id {most} is not below {known}, the codes of codes.json")
    return ids


def encode_codes(ids: np.ndarray) -> bytes:
    """The file of codes: the same bytes for the same ids, on any machine and day.

    Args:
        ids: integers (h, w) from 0 to 65,535.

    Raises:
        BadSample: an array that :func:`decode_codes` would refuse.
    """
    found = np.asarray(ids)
    if found.ndim != 2 or found.dtype.kind not in "iu":
        raise BadSample(f"codes: an array of type {found.dtype} and shape {found.shape}, not integers (h, w)")
    _check_grid((found.shape[0], found.shape[1]))
    if found.min() < 0 or found.max() >= MAX_KNOWN:
        raise BadSample(f"codes: ids from {found.min()} to {found.max()}, outside 0 to {MAX_KNOWN - 1}")
    text = f"{{'descr': '<u2', 'fortran_order': False, 'shape': ({found.shape[0]}, {found.shape[1]}), }}".encode("ascii")
    text += b" " * (-(len(_MAGIC) + 3 + len(text)) % 64) + b"\n"  # the array begins at a multiple of 64
    return _MAGIC + len(text).to_bytes(2, "little") + text + np.ascontiguousarray(found, dtype="<u2").tobytes()


def _header(data: bytes) -> tuple[int, tuple[int, int]]:
    """(offset of the array, its shape) after all checks but that of the ids."""
    if len(data) > MAX_FILE:
        raise BadSample(f"codes of {len(data)} bytes are more than {MAX_FILE}")
    if data[:8] != _MAGIC or len(data) < 10:
        raise BadSample("codes: not an array of numpy in version 1.0 of its format")
    start = 10 + int.from_bytes(data[8:10], "little")
    match = _HEAD.fullmatch(data, 10, start) if start <= min(len(data), _HEAD_MOST) else None
    if match is None:
        raise BadSample("codes: the array header cannot be read")
    kind, shape = match[1].decode("latin-1"), tuple(int(part) for part in match[3].split(b",") if part.strip())
    if kind != "<u2":
        raise BadSample(f"codes: type {kind}, not <u2")
    if match[2] == b"True":
        raise BadSample("codes: in Fortran order; write numpy.ascontiguousarray of them")
    if len(shape) != 2:
        raise BadSample(f"codes: shape {shape}, not (h, w)")
    grid = (shape[0], shape[1])
    _check_grid(grid)
    if start + 2 * grid[0] * grid[1] != len(data):
        raise BadSample(f"codes: {len(data) - start} bytes, but shape {grid} needs {2 * grid[0] * grid[1]}")
    return start, grid


def _check_grid(grid: tuple[int, int]) -> None:
    if not all(grid):
        raise BadSample(f"codes: a grid of {grid[0]} x {grid[1]} is empty")
    if max(grid) > MAX_SIDE or grid[0] * grid[1] > MAX_CODES:
        raise BadSample(f"codes: a grid of {grid[0]} x {grid[1]} is more than {MAX_SIDE} a side or {MAX_CODES} together")
