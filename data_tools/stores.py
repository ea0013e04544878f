"""Stores of region features that older systems wrote: what one record is, how a store is opened, how its keys are matched to shards.

======  =============================================================================  ==================
format  layout                                                                         module
======  =============================================================================  ==================
TSV     bottom-up attention (6 columns, base64), LXMERT (10 columns)                   ``stores_tsv``
VinVL   ``features.tsv`` with a label file and ``.lineidx``                            ``stores_vinvl``
LMDB    VOLTA, ViLBERT (values in pickle), UNITER (msgpack with arrays, or npz)        ``stores_lmdb``
HDF5    a group for each image (VOLTA), or arrays over all images (36 or 10 to 100)    ``stores_h5``
======  =============================================================================  ==================

Nothing that a store holds is executed: pickle and msgpack are read by machines of our own that know plain containers, texts, numbers and
numeric arrays, and refuse everything else.
"""

from __future__ import annotations

import base64
import binascii
import io
import lzma
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mmpretrain.data.errors import BadSample, DataError

MAX_RECORD = 64 << 20  # bytes of one record
VG_COLUMNS = 1601  # classes of bottom-up attention, the background first
MATCHES = ("key", "id", "number")
_KINDS = "fiub"
_ENDINGS = re.compile(r"\.(npz|npy|jpe?g|png|webp)$", re.IGNORECASE)
_DIGITS = re.compile(r"(\d+)$")

# what a value is called by the systems that wrote it
NAMES = {
    "features": ("features",),
    "boxes": ("boxes", "bbox"),
    "norm_boxes": ("norm_bb",),
    "height": ("img_h", "image_h", "image_height"),
    "width": ("img_w", "image_w", "image_width"),
    "classes": ("obj_id", "objects_id"),
    "class_probs": ("cls_prob", "soft_labels"),
    "attributes": ("attr_id", "attrs_id"),
    "attribute_probs": ("attr_prob",),
    "scores": ("obj_conf", "objects_conf", "conf"),
}
_INTEGERS = ("classes", "attributes")
# what zipfile, its decompressors and numpy's parser of headers raise at bytes that are no npz
_DAMAGED: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError)
_DAMAGED += (ValueError, OSError, EOFError, RuntimeError, LookupError, TypeError, SyntaxError, OverflowError, MemoryError)


class Record(NamedTuple):
    """The regions of one image as a store has them."""

    features: np.ndarray  # (R, F)
    boxes: np.ndarray  # (R, 4) x1 y1 x2 y2
    normalised: bool  # boxes are parts of width and height
    size: tuple[int, int] | None  # (height, width) of the image that boxes in pixels refer to
    classes: np.ndarray | None = None  # (R,)
    class_probs: np.ndarray | None = None  # (R, C)
    attributes: np.ndarray | None = None
    attribute_probs: np.ndarray | None = None
    scores: np.ndarray | None = None


class Store(Protocol):
    """A store that is open. Locations are JSON types, so that another process can read the same record."""

    path: Path
    format: str
    classes: tuple[str, ...] | None  # names that the store itself has

    def locations(self) -> dict[str, Any]:
        """Key of an image -> where its record lies."""
        ...

    def read(self, location: Any) -> Record:
        """One record.

        Raises:
            BadSample: it is damaged, or holds what is refused.
        """
        ...


def open_store(path: Path, classes: Sequence[str] | None = None) -> Store:
    """The store at ``path``, its format told from the files.

    Args:
        path: a file or folder.
        classes: names of classes, for formats that name them (VinVL); None: those that the store names, in alphabetical order.

    Raises:
        DataError: no store, an unknown format, or a library that is not installed.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; --store takes a TSV, LMDB or HDF5 file or folder")
    if path.suffix == ".lmdb" or path.name == "data.mdb" or (path / "data.mdb").is_file():
        from mmpretrain.data_tools.stores_lmdb import LmdbStore

        return LmdbStore(path)
    if path.suffix in (".h5", ".hdf5"):
        from mmpretrain.data_tools.stores_h5 import H5Store

        return H5Store(path)
    from mmpretrain.data_tools.stores_tsv import columns_of, tsv_store
    from mmpretrain.data_tools.stores_vinvl import VinvlStore, features_file

    if (features := features_file(path)) is not None and (path.is_dir() or columns_of(features) < 4):
        return VinvlStore(features, classes)
    if path.is_file() and path.suffix in (".tsv", ".csv"):
        return tsv_store(path)
    raise DataError(f"{path}: no store of a known format (.tsv, .h5, .hdf5, .lmdb, data.mdb, or a folder with features.tsv)")


def needs(library: str) -> Any:
    """The module ``library``.

    Raises:
        DataError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(library)
    except ImportError:
        raise DataError(f"this store needs the package {library}: pip install 'mmpretrain-vl[stores]'") from None


def numeric(data: bytes | memoryview, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """The array of these bytes.

    Raises:
        BadSample: a type that is no number, or a shape that the bytes do not fill.
    """
    try:
        kind = np.dtype(dtype) if re.fullmatch(r"[<>=|]?[fiub][1248]?", dtype) else None
    except TypeError:
        kind = None
    if kind is None or kind.kind not in _KINDS:
        raise BadSample(f"an array of type {dtype!r} is refused: only numbers are read")
    if not all(isinstance(side, int) and side >= 0 for side in shape) or math.prod(shape) * kind.itemsize != len(data):
        raise BadSample(f"an array of shape {tuple(shape)!r} and type {dtype} does not fit {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(tuple(shape))


def npz(data: bytes) -> dict[str, np.ndarray]:
    """The numeric arrays of an ``.npz`` in memory; sizes are checked before anything is inflated.

    Raises:
        BadSample: damaged, too large, or arrays of objects.
    """
    found = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_RECORD:
                raise BadSample(f"arrays of more than {MAX_RECORD} bytes")
            for entry in archive.infolist():
                body = io.BytesIO(archive.read(entry))
                version = np.lib.format.read_magic(body)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, kind = read(body)
                array = numeric(body.getbuffer()[body.tell() :], kind.str, shape[::-1] if fortran else shape)
                found[entry.filename.removesuffix(".npy")] = array.T if fortran else array
    except _DAMAGED as error:
        raise error if isinstance(error, BadSample) else BadSample(f"its npz cannot be read ({error})") from None
    return found


def unbase64(text: str | bytes, dtype: str) -> np.ndarray:
    """The numbers of a base64 text, one dimension.

    Raises:
        BadSample: no base64, or bytes that do not make whole numbers.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSample(f"a field is no base64 ({error})") from None
    size = np.dtype(dtype).itemsize
    if len(data) % size:
        raise BadSample(f"{len(data)} bytes of base64 are no numbers of {size} bytes")
    return np.frombuffer(data, dtype)


def record(values: Mapping[str, Any]) -> Record:
    """The record of the values that VOLTA, ViLBERT, LXMERT or UNITER keep of an image, under any of their names.

    Raises:
        BadSample: features or boxes are missing, or shapes do not belong together.
    """
    found = {meaning: next((values[name] for name in names if name in values), None) for meaning, names in NAMES.items()}
    boxes = found["boxes"] if found["boxes"] is not None else found["norm_boxes"]
    if found["features"] is None or boxes is None:
        raise BadSample(f"it has {', '.join(sorted(map(str, values))[:12]) or 'nothing'}, but no features and boxes")
    normalised = found["boxes"] is None
    boxes = _floats(boxes)
    boxes = boxes.reshape(-1, 4) if boxes.ndim == 1 else boxes
    if boxes.ndim != 2 or boxes.shape[1] < 4 or (not normalised and boxes.shape[1] != 4):
        raise BadSample(f"boxes have shape {boxes.shape}, not (R, 4)")
    rest = {
        name: _shaped(name, found[name], len(boxes))
        for name in ("features", "classes", "class_probs", "attributes", "attribute_probs", "scores")
        if found[name] is not None
    }
    sides = [found[side] for side in ("height", "width")]
    size = (_integer(sides[0]), _integer(sides[1])) if sides[0] is not None and sides[1] is not None else None
    return Record(boxes=boxes[:, :4], normalised=normalised, size=size, **rest)


def _integer(value: Any) -> int:
    try:
        return int(np.asarray(value).reshape(()))
    except (TypeError, ValueError, OverflowError):
        raise BadSample(f"a side of the image is {str(value)[:40]!r}, no number") from None


def _floats(value: Any) -> np.ndarray:
    array = unbase64(value, "<f4") if isinstance(value, str | bytes) else value
    if not isinstance(array, np.ndarray) or array.dtype.kind not in _KINDS:
        raise BadSample(f"a value is {type(array).__name__}, not an array of numbers")
    return array


def _shaped(name: str, value: Any, count: int) -> np.ndarray:
    array = unbase64(value, "<i8") if name in _INTEGERS and isinstance(value, str | bytes) else _floats(value)
    flat = name in ("classes", "attributes", "scores")
    if array.ndim == 1 and not flat and count and array.size % count == 0:
        array = array.reshape(count, -1)
    if array.ndim != (1 if flat else 2) or len(array) != count:
        raise BadSample(f"{name} have shape {array.shape} for {count} boxes")
    return array


def plain_key(key: str) -> str:
    """A key without the ending of a file."""
    return _ENDINGS.sub("", key)


def matched(names: Iterable[str], rule: str) -> dict[str, str]:
    """Name under the rule -> key of the store.

    Raises:
        DataError: two keys of the store have the same name under the rule.
    """
    found: dict[str, str] = {}
    for key in names:
        name = number_of(key) if rule == "number" else plain_key(key)
        if name is None:
            continue
        if name in found:
            raise DataError(f"--match {rule}: the keys {found[name]!r} and {key!r} of the store are both {name!r}; choose another --match")
        found[name] = key
    return found


def number_of(key: str) -> str | None:
    """The number at the end of a key, without leading zeros; None without one."""
    digits = _DIGITS.search(plain_key(key))
    return str(int(digits[1])) if digits and len(digits[1]) <= 40 else None
