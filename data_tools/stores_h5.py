"""HDF5 stores: a group for each image (VOLTA), or arrays over all images, of a fixed (36) or adaptive (10 to 100) number of boxes.

Links, virtual and external data sets are refused: they could name other files of this machine. Ids of rows come from a data set of the file
(``image_id``), else from the pickle or JSON with numbers of rows that was written beside it (``train36_imgid2idx.pkl``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data_tools.stores import MAX_RECORD, NAMES, Record, needs, record

_IDS = ("image_id", "image_ids", "img_id", "img_ids", "ids")
_FEATURES, _BOXES = ("image_features", "features"), ("image_bb", "boxes")
_SPANS = "pos_boxes"  # first and last box of each image where their number differs
_LISTED = ("imgid2idx.pkl", "imgid2idx.json", "ids.json")
_LIST_MOST = 1 << 30  # bytes


class H5Store:
    """Implements ``stores.Store``; a location is the name of a group, or the number of a row.

    Args:
        path: the file.
    """

    format = "h5"
    classes: tuple[str, ...] | None = None

    def __init__(self, path: Path) -> None:
        h5py = needs("h5py")
        self.path, self._h5 = path, h5py
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise DataError(f"{path}: it cannot be opened as HDF5 ({error})") from None
        names = set(self._file)
        self.flat = {
            meaning: next((name for name in wanted if name in names), None)
            for meaning, wanted in (("features", _FEATURES), ("boxes", _BOXES), ("ids", _IDS))
        }
        self.rows = self.flat["features"] is not None and isinstance(self._hard(self.flat["features"]), h5py.Dataset)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def _hard(self, name: str) -> Any:
        """The object of a name, where it lies in this file."""
        link = self._file.get(name, getlink=True)
        parents = [self._file.get(name.rpartition("/")[0], getlink=True)] if "/" in name else []
        for one in (*parents, link):
            if not isinstance(one, self._h5.HardLink):
                raise BadSample(f"{name} is a link to another place, which is refused")
        return self._file[name]

    def _array(self, name: str, rows: Any = ()) -> np.ndarray:
        """Numbers of a data set, or some of its rows.

        Raises:
            BadSample: no numbers, data that lie in another file, or too many.
        """
        found = self._hard(name)
        if not isinstance(found, self._h5.Dataset) or found.is_virtual or found.external or found.dtype.kind not in "fiub":
            raise BadSample(f"{name} is no data set of numbers in this file")
        count = int(np.prod(found.shape[1:] if rows != () else found.shape, dtype=np.int64))
        count *= rows.stop - rows.start if isinstance(rows, slice) else 1
        if count * found.dtype.itemsize > MAX_RECORD:
            raise BadSample(f"{name} has {count} values, more than {MAX_RECORD} bytes")
        there, last = (found.shape or (0,))[0], rows.stop - 1 if isinstance(rows, slice) else rows
        if rows != () and last >= there:
            raise BadSample(f"{name} has {there} rows, and none of number {last}: it is cut short, or the ids are of another file")
        try:
            return np.asarray(found[rows])
        except (OSError, RuntimeError) as error:
            raise BadSample(f"{name} cannot be read ({error})") from None

    def locations(self) -> dict[str, Any]:
        if not self.rows:
            return {name: name for name in self._file}
        if self.flat["ids"] is not None:
            found = self._hard(self.flat["ids"])
            if found.dtype.kind not in "fiubSO" or found.ndim > 2:
                raise DataError(f"{self.path}: {self.flat['ids']} holds neither numbers nor texts")
            ids = np.asarray(found.asstr()[()] if found.dtype.kind in "SO" else found[()]).reshape(-1)
            return {str(int(one)) if found.dtype.kind in "fiu" else str(one): row for row, one in enumerate(ids.tolist())}
        return self._listed()

    def _listed(self) -> dict[str, Any]:
        """Ids of the file beside this one."""
        stem = self.path.stem
        for name in _LISTED:
            beside = self.path.with_name(f"{stem}_{name}")
            if not beside.is_file():
                continue
            if beside.stat().st_size > _LIST_MOST:
                raise DataError(f"{beside}: {beside.stat().st_size} bytes are more than {_LIST_MOST}")
            if beside.suffix == ".pkl":
                from mmpretrain.data_tools.plain_pickle import loads

                found = loads(beside.read_bytes(), str(beside))
            else:
                found = json.loads(beside.read_text(encoding="utf-8"))
            pairs = found.items() if isinstance(found, dict) else ((one, row) for row, one in enumerate(found))
            return {str(key): int(row) for key, row in pairs}
        raise DataError(
            f"{self.path}: it does not name its images: there is neither {', '.join(_IDS)} in it nor {stem}_{_LISTED[0]} beside it "
            f"(or {', '.join(_LISTED[1:])})"
        )

    def read(self, location: Any) -> Record:
        return self._row(int(location)) if self.rows else self._group(str(location))

    def _row(self, row: int) -> Record:
        if self.flat["boxes"] is None:
            raise BadSample(f"there is no data set {' or '.join(_BOXES)}")
        if _SPANS in self._file:
            first, last = (int(number) for number in self._array(_SPANS, row))
            rows: Any = slice(first, last)
            if not 0 <= first <= last:
                raise BadSample(f"{_SPANS} of row {row} is {first} to {last}")
        else:
            rows = row
        values: dict[str, Any] = {name: self._array(self.flat[name], rows) for name in ("features", "boxes")}
        count = int(self._array("num_boxes", row).reshape(())) if "num_boxes" in self._file else len(values["boxes"])
        for side in (*NAMES["height"], *NAMES["width"]):
            if side in self._file:
                values[side] = self._array(side, row)
        return record({name: value[:count] if name in ("features", "boxes") else value for name, value in values.items()})

    def _group(self, name: str) -> Record:
        group = self._hard(name)
        if not isinstance(group, self._h5.Group):
            raise BadSample(f"{name} is no group with features and boxes")
        wanted = {alias for aliases in NAMES.values() for alias in aliases}
        return record({field: self._array(f"{name}/{field}") for field in group if field in wanted})
