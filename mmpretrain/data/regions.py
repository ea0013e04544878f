"""``KEY.regions.npz``: the regions of a picture, as a detector or a grid gives them. Schema, reader and writer.

An uncompressed or deflated zip of ``NAME.npy`` arrays (``numpy.savez``, ``numpy.savez_compressed``), little-endian, C order:

==================  =======  ========  ========================================================================================
name                type     shape     meaning
==================  =======  ========  ========================================================================================
features            float16  (R, F)    one feature vector per region
boxes               float32  (R, 4)    x1 y1 x2 y2 in pixels of the picture; 0 <= x1 <= x2 <= width, 0 <= y1 <= y2 <= height
image_size          int32    (2,)      height, width of the picture that the boxes refer to, upright by EXIF
classes             int16    (R,)      optional: object class, -1 where there is none
class_probs         float16  (R, C)    optional: probabilities of the classes
attributes          int16    (R,)      optional: attribute, -1 where there is none
attribute_probs     float16  (R, A)    optional: probabilities of the attributes
scores              float32  (R,)      optional: confidence of the detector
global_feature      float16  (F,)      optional: feature of the whole picture
==================  =======  ========  ========================================================================================

``R`` may be 0. A box may stick out by at most one pixel (rounding of converters) and is then clipped. The names of classes and attributes
belong to the set, not to the sample.

Nothing is unpickled, and nothing is inflated before the whole directory and every array header were checked: names, types, shapes and their
products against the limits below, places that overlap. What is inflated stops at the announced size.
"""

from __future__ import annotations

import io
import itertools
import re
import struct
import zipfile
import zlib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from mmpretrain.data.errors import BadSample
from mmpretrain.types import Regions

MAX_FILE = 16 << 20  # bytes of a member, and of all its arrays inflated
MAX_REGIONS = 4096
MAX_WIDTH = 32767  # of features and of probabilities; classes are int16
MAX_SIDE = 1 << 20  # pixels
_OVERHANG = 1.0  # pixels that a box may stick out
_TYPES = {
    "features": "<f2",
    "boxes": "<f4",
    "image_size": "<i4",
    "classes": "<i2",
    "class_probs": "<f2",
    "attributes": "<i2",
    "attribute_probs": "<f2",
    "scores": "<f4",
    "global_feature": "<f2",
}
_REQUIRED = ("features", "boxes", "image_size")
_END, _ENTRY, _LOCAL = struct.Struct("<4s4H2IH"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
_FLAGS = 0x80E  # how hard it was packed, sizes behind the bytes, UTF-8 names; not encrypted, not patched
_HEAD_MOST = 1024  # bytes of an array header
_HEAD = re.compile(
    rb"\{\s*'descr':\s*'([^']{1,32})',\s*'fortran_order':\s*(True|False),\s*'shape':\s*\(((?:\d{1,10},\s*)*(?:\d{1,10})?)\),?\s*\}\s*"
)
_LONGEST_NAME = max(map(len, _TYPES)) + len(".npy")


class _Array(NamedTuple):
    """Where an array lies in the file, before anything but its header is inflated."""

    shape: tuple[int, ...]
    deflated: bool
    start: int  # of the packed bytes
    packed: int
    head: int  # bytes of the array header
    size: int  # bytes of the array, header included
    crc: int


def region_counts(data: bytes) -> tuple[int, int]:
    """(R, F) of a file, from its headers alone.

    Raises:
        BadSample: the file breaks the schema in a way that its headers show.
    """
    shape = _directory(data)["features"].shape
    return shape[0], shape[1]


def decode_regions(data: bytes, wanted: Collection[str] | None = None) -> Regions:
    """The arrays of a file, checked. They share no memory with ``data``.

    Args:
        data: a whole ``KEY.regions.npz``.
        wanted: the optional arrays to inflate; None: all that are there.

    Raises:
        BadSample: naming the array and the reason.
    """
    found = _directory(data)
    arrays = {name: _inflate(data, name, one) for name, one in found.items() if wanted is None or name in _REQUIRED or name in wanted}
    return _checked(Regions(**arrays))


def encode_regions(regions: Regions) -> bytes:
    """The file of ``regions``: the same bytes for the same arrays, on any machine and day.

    Args:
        regions: arrays of any numeric type that the schema's type can hold.

    Raises:
        BadSample: arrays that :func:`decode_regions` would refuse, or numbers beyond the schema's type.
    """
    given = {name: value for name, value in regions._asdict().items() if value is not None}
    arrays = {name: _stored(name, given[name]) for name in _TYPES if name in given}
    _check_shapes({name: array.shape for name, array in arrays.items()})
    checked = _checked(Regions(**arrays))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for name in arrays:
            body = io.BytesIO()
            np.lib.format.write_array(body, getattr(checked, name), version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # alike on every operating system
            archive.writestr(entry, body.getvalue())
    if buffer.tell() > MAX_FILE:
        raise BadSample(f"regions of {buffer.tell()} bytes are more than {MAX_FILE}")
    return buffer.getvalue()


def _stored(name: str, given: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        made = np.ascontiguousarray(given, dtype=_TYPES[name])
    lost = made != given if made.dtype.kind == "i" else np.isinf(made) & np.isfinite(given)
    if lost.any():
        raise BadSample(f"regions: {name} hold {np.asarray(given)[lost][0]}, which {made.dtype} does not")
    return made


def _directory(data: bytes) -> dict[str, _Array]:
    """The arrays of the zip after all checks that need no array inflated."""
    if len(data) > MAX_FILE:
        raise BadSample(f"regions of {len(data)} bytes are more than {MAX_FILE}")
    if len(data) < _END.size:
        raise BadSample(f"regions: {len(data)} bytes are no npz file")
    magic, disk, disk0, count, total, length, start, comment = _END.unpack_from(data, len(data) - _END.size)
    if magic != b"PK\5\6" or disk or disk0 or comment or count != total or start + length != len(data) - _END.size:
        raise BadSample("regions: not a plain npz file, or cut short")
    if not 0 < count <= len(_TYPES):
        raise BadSample(f"regions: {count} arrays, at most {len(_TYPES)} are known")
    found: dict[str, _Array] = {}
    spans: list[tuple[int, int, str]] = [(start, len(data), "the directory")]
    at, inflated = start, 0
    for _ in range(count):
        name, one, header, at = _entry(data, at, len(data) - _END.size)
        if name in found:
            raise BadSample(f"regions: two arrays {name}")
        inflated += one.size
        if inflated > MAX_FILE:
            raise BadSample(f"regions: arrays of {inflated} bytes are more than {MAX_FILE}")
        found[name] = one
        spans.append((header, one.start + one.packed, name))
    if at != start + length:
        raise BadSample("regions: the directory of the npz file is damaged")
    spans.sort()
    for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
        if end > begin:
            raise BadSample(f"regions: {first} and {second} overlap in the file")
    parsed = {name: _head(data, name, one) for name, one in found.items()}
    _check_shapes({name: one.shape for name, one in parsed.items()})
    return parsed


def _entry(data: bytes, at: int, end: int) -> tuple[str, _Array, int, int]:
    """(name, place, offset of its local header, where the next entry begins) of one entry of the directory."""
    if at + _ENTRY.size > end:
        raise BadSample("regions: the directory of the npz file is cut short")
    magic, _, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment, disk, _, _, header = _ENTRY.unpack_from(data, at)
    if magic != b"PK\1\2" or disk or n_name > _LONGEST_NAME or at + _ENTRY.size + n_name + n_extra + n_comment > end:
        raise BadSample("regions: the directory of the npz file is damaged, or names an unknown array")
    raw = data[at + _ENTRY.size : at + _ENTRY.size + n_name]
    name = raw.decode("latin-1").removesuffix(".npy")
    if name not in _TYPES or raw != f"{name}.npy".encode():
        raise BadSample(f"regions: unknown array {raw.decode('latin-1')!r}")
    if flags & ~_FLAGS or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadSample(f"regions: {name} is packed by method {method} with flags {flags:#x}; use numpy.savez or savez_compressed")
    if header + _LOCAL.size > len(data):
        raise BadSample(f"regions: {name} lies outside the file")
    local, _, _, _, _, _, _, _, _, local_name, local_extra = _LOCAL.unpack_from(data, header)
    first = header + _LOCAL.size + local_name + local_extra
    if local != b"PK\3\4" or data[header + _LOCAL.size : header + _LOCAL.size + local_name] != raw or first + packed > len(data):
        raise BadSample(f"regions: {name} is not where the directory says")
    if method == zipfile.ZIP_STORED and packed != size:
        raise BadSample(f"regions: {name} is announced with two sizes")
    place = _Array((), method == zipfile.ZIP_DEFLATED, first, packed, 0, size, crc)
    return name, place, header, at + _ENTRY.size + n_name + n_extra + n_comment


def _head(data: bytes, name: str, one: _Array) -> _Array:
    """``one`` with what its array header says; only the header is inflated."""
    head = _read(data, name, one, min(one.size, _HEAD_MOST))
    if head[:6] != b"\x93NUMPY" or len(head) < 12 or head[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise BadSample(f"regions: {name} is no array of numpy")
    begin, length = (10, int.from_bytes(head[8:10], "little")) if head[6] == 1 else (12, int.from_bytes(head[8:12], "little"))
    match = _HEAD.fullmatch(head, begin, begin + length) if begin + length <= len(head) else None
    if match is None:
        raise BadSample(f"regions: the array header of {name} cannot be read")
    kind, fortran, shape = (
        match[1].decode("latin-1"),
        match[2] == b"True",
        tuple(int(part) for part in match[3].split(b",") if part.strip()),
    )
    if kind != _TYPES[name]:
        raise BadSample(f"regions: {name} has type {kind}, not {_TYPES[name]}")
    if fortran:
        raise BadSample(f"regions: {name} is in Fortran order; write numpy.ascontiguousarray of it")
    count = 1
    for side in shape:
        count *= side
    if len(shape) > 2 or begin + length + count * np.dtype(kind).itemsize != one.size:
        raise BadSample(f"regions: {name} of shape {shape} does not have the size that the file announces")
    return one._replace(shape=shape, head=begin + length)


def _check_shapes(shapes: dict[str, tuple[int, ...]]) -> None:
    if missing := [name for name in _REQUIRED if name not in shapes]:
        raise BadSample(f"regions: {', '.join(missing)} missing")
    if len(shapes["features"]) != 2:
        raise BadSample(f"regions: features have shape {shapes['features']}, not (R, F)")
    count, width = shapes["features"]
    if count > MAX_REGIONS or not 0 < width <= MAX_WIDTH:
        raise BadSample(f"regions: features of shape {(count, width)} are beyond {MAX_REGIONS} regions or 1 to {MAX_WIDTH} values")
    expected: dict[str, tuple[int, ...]] = {"boxes": (count, 4), "image_size": (2,), "global_feature": (width,)}
    expected |= dict.fromkeys(("classes", "attributes", "scores"), (count,))
    for name, shape in shapes.items():
        if name.endswith("_probs"):
            if len(shape) != 2 or shape[0] != count or not 0 < shape[1] <= MAX_WIDTH:
                raise BadSample(f"regions: {name} has shape {shape}, not ({count}, 1 to {MAX_WIDTH})")
        elif name != "features" and shape != expected[name]:
            raise BadSample(f"regions: {name} has shape {shape}, not {expected[name]}")


def _inflate(data: bytes, name: str, one: _Array) -> np.ndarray:
    body = _read(data, name, one, one.size)
    if len(body) != one.size or zlib.crc32(body) != one.crc:
        raise BadSample(f"regions: the bytes of {name} are damaged")
    return np.frombuffer(body, _TYPES[name], offset=one.head).reshape(one.shape).copy()


def _read(data: bytes, name: str, one: _Array, most: int) -> bytes:
    """The first ``most`` bytes of an array, unpacked; one more where the packed bytes hold more than announced."""
    packed = memoryview(data)[one.start : one.start + one.packed]
    if not one.deflated:
        return bytes(packed[:most])
    try:
        return zlib.decompressobj(-15).decompress(packed, most + (most == one.size))
    except zlib.error as error:
        raise BadSample(f"regions: {name} cannot be inflated ({error})") from None


def _checked(regions: Regions) -> Regions:
    """The same regions with boxes clipped to the picture, after the checks of values."""
    for name, array in regions._asdict().items():
        if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadSample(f"regions: {name} hold NaN or infinity")
    for name in ("class_probs", "attribute_probs"):
        probabilities = getattr(regions, name)
        if probabilities is not None and probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1.001):
            raise BadSample(f"regions: {name} are not between 0 and 1")
        labels = getattr(regions, "classes" if name == "class_probs" else "attributes")
        most = probabilities.shape[1] if probabilities is not None else MAX_WIDTH + 1
        if labels is not None and labels.size and not (labels.min() >= -1 and labels.max() < most):
            raise BadSample(f"regions: a label is outside -1 to {most - 1}")
    height, width = (int(side) for side in regions.image_size)
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise BadSample(f"regions: image_size {height} x {width} is no size of a picture")
    limits = np.asarray([width, height, width, height], dtype=np.float32)
    if (regions.boxes < -_OVERHANG).any() or (regions.boxes > limits + _OVERHANG).any():
        raise BadSample(f"regions: a box lies outside the picture of {height} x {width} pixels (height x width)")
    if (regions.boxes[:, :2] > regions.boxes[:, 2:]).any():
        raise BadSample("regions: a box ends before it begins (boxes are x1 y1 x2 y2)")
    return regions._replace(boxes=np.clip(regions.boxes, 0, limits))
