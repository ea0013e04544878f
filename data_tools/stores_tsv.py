"""TSV files with base64: bottom-up attention (``image_id image_w image_h num_boxes boxes features``) and LXMERT (ten columns)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data_tools.stores import MAX_RECORD, Record, record

BUTD = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features")
_KEY_MOST = 1024


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(offset, first column) of each line.

    Raises:
        DataError: a line without a tab or longer than a record may be.
    """
    with open(path, "rb") as file:
        at = 0
        while line := file.readline(MAX_RECORD + 1):
            if len(line) > MAX_RECORD:
                raise DataError(f"{path}: the line at offset {at} is longer than {MAX_RECORD} bytes; this is no TSV of features")
            if line.strip():
                yield at, first_column(line, path, at)
            at += len(line)


def first_column(line: bytes, path: Path, at: int) -> str:
    """The key of a line, of which at least the first kilobyte is given."""
    key, tab, _ = line[:_KEY_MOST].partition(b"\t")
    try:
        if tab:
            return key.decode("utf-8").strip()
    except UnicodeDecodeError:
        pass  # the message below says so
    raise DataError(f"{path}: the line at offset {at} does not begin with a key and a tab; this is no TSV of features")


def columns_of(path: Path) -> int:
    """Columns of the first line."""
    with open(path, "rb") as file:
        line = file.readline(MAX_RECORD + 1)
    return line.count(b"\t") + 1


def unique(found: Iterator[tuple[int, str]]) -> dict[str, int]:
    """Key -> offset of its first line; bottom-up attention's own files repeat some images."""
    places: dict[str, int] = {}
    for at, key in found:
        places.setdefault(key, at)
    return places


def line_at(file: BinaryIO, at: int) -> list[str]:
    """The columns of the line at an offset.

    Raises:
        BadSample: no line begins there, or it is no text.
    """
    file.seek(at)
    line = file.readline(MAX_RECORD + 1)
    if not line or len(line) > MAX_RECORD:
        raise BadSample(f"there is no record at offset {at}; the file changed")
    try:
        return [column.strip() for column in line.decode("utf-8").split("\t")]
    except UnicodeDecodeError:
        raise BadSample(f"the line at offset {at} is not UTF-8") from None


def tsv_store(path: Path) -> TsvStore:
    """The store of a file with the columns of bottom-up attention or LXMERT.

    Raises:
        DataError: another number of columns.
    """
    count = columns_of(path)
    columns = {len(names): names for names in (BUTD, LXMERT)}.get(count)
    if columns is None:
        raise DataError(f"{path}: {count} columns; bottom-up attention has {len(BUTD)}, LXMERT {len(LXMERT)}, VinVL 2 or 3")
    return TsvStore(path, columns)


class TsvStore:
    """Implements ``stores.Store``; locations are offsets of lines."""

    format = "tsv"
    classes: tuple[str, ...] | None = None

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path, self.columns = path, columns
        self._file = open(path, "rb")

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def locations(self) -> dict[str, Any]:
        return unique(lines(self.path))

    def read(self, location: Any) -> Record:
        values = line_at(self._file, int(location))
        if len(values) != len(self.columns):
            raise BadSample(f"{len(values)} columns, not {len(self.columns)}")
        named: dict[str, Any] = dict(zip(self.columns, values))
        try:
            counts = {name: int(float(named[name])) for name in self.columns if name.endswith(("_w", "_h")) or name == "num_boxes"}
        except (ValueError, OverflowError):
            raise BadSample("width, height or number of boxes is no number") from None
        found = record({**named, **counts})
        if len(found.boxes) != counts["num_boxes"]:
            raise BadSample(f"{len(found.boxes)} boxes, but num_boxes says {counts['num_boxes']}")
        return found
