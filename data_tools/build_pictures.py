"""The bytes of a picture from the place that a record names, and whether they are a whole picture that training can read."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from mmpretrain.data.decode import decode_image, opened, refusals
from mmpretrain.data.errors import BadSample
from mmpretrain.data_tools.build_records import MISSING, Place

CHECKS = ("full", "header", "none")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_ORIENTATION = 274
_OTHER = (
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"%!PS", "PostScript"),
    (b"%PDF", "PDF"),
    (b"\x1f\x8b", "gzip"),
)


class Checked(NamedTuple):
    """What was found out about a picture."""

    extension: str  # jpg, png or webp, by its bytes; names lie
    width: int  # upright; 0 where nothing was decoded
    height: int


class BadPicture(Exception):
    """A picture that does not go into a shard: ``reason`` is one of few, ``detail`` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


def read(place: Place) -> bytes:
    """The bytes at a place.

    Raises:
        BadPicture: the file is missing or cannot be read, or the cell is empty.
    """
    path = place if isinstance(place, str) else place[0]
    try:
        if isinstance(place, str):
            with open(place, "rb") as file:
                return file.read()
        if len(place) == 3:
            with open(path, "rb") as file:
                file.seek(place[1])
                found = file.read(place[2])
            if len(found) < place[2]:
                raise BadPicture("picture is cut short", f"{path} ends inside it")
            return found
        cell = _cell(*place)
    except ValueError as error:  # of Arrow
        raise BadPicture("file cannot be read", f"{path}: {error}") from None
    except FileNotFoundError:
        raise BadPicture(MISSING, path) from None
    except OSError as error:
        raise BadPicture("file cannot be read", f"{path}: {error.strerror or error}") from None
    if not isinstance(cell, bytes):
        raise BadPicture(MISSING, f"{path}: {place[1]} of row {place[3]} of batch {place[2]} is empty")
    return cell


def _cell(path: str, column: str, batch: int, row: int) -> Any:
    return _column(path, column, batch)[row].as_py()


@functools.lru_cache(maxsize=4)
def _column(path: str, column: str, batch: int) -> Any:
    """A column of one record batch (Arrow, mapped) or row group (Parquet, read); ``a.b`` is the child b of a struct."""
    name, _, child = column.partition(".")
    if path.endswith(".parquet"):
        found = _parquet(path).read_row_group(batch, columns=[column]).column(name).combine_chunks()
    else:
        found = _arrow(path).get_batch(batch).column(name)
    return found.field(child) if child else found


@functools.lru_cache(maxsize=4)
def _arrow(path: str) -> Any:
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(path))


@functools.lru_cache(maxsize=4)
def _parquet(path: str) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path)


def check(data: bytes, how: str) -> Checked:
    """Look at the bytes of a picture.

    Args:
        data: a whole file.
        how: ``full`` decodes it as training does; ``header`` reads format and size only, and finds no damage behind them; ``none`` reads
            the first bytes.

    Raises:
        BadPicture: empty, another format, damaged, or more pixels than training accepts.
    """
    if not data:
        raise BadPicture("picture is empty", "0 bytes")
    extension = _kind(data)
    if how == "none":
        return Checked(extension, 0, 0)
    if how == "header":
        return Checked(extension, *_size(data))
    try:
        image = decode_image(data)
    except BadSample as error:
        raise _refused(str(error)) from None
    return Checked(extension, image.width, image.height)


def _refused(message: str) -> BadPicture:
    return BadPicture("picture has too many pixels" if "more than" in message else "picture is damaged", message)


def _kind(data: bytes) -> str:
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    other = next((name for magic, name in _OTHER if data.startswith(magic)), "")
    if data[4:8] == b"ftyp":
        other = "AVIF or HEIC"
    elif data.lstrip()[:1] == b"<":
        other = "an HTML or SVG page"
    raise BadPicture("not JPEG, PNG or WebP", other or f"begins with {data[:8]!r}")


def _size(data: bytes) -> tuple[int, int]:
    """Width and height from the header, exchanged where the EXIF orientation turns the picture."""
    try:
        with refusals(data):
            image = opened(data)
            turned = image.getexif().get(_ORIENTATION) in _TURNED
    except BadSample as error:
        raise _refused(str(error)) from None
    return (image.height, image.width) if turned else (image.width, image.height)
