"""LMDB stores: VOLTA and ViLBERT (values in pickle, arrays or base64), UNITER (msgpack with arrays of msgpack_numpy, or compressed npz).

Keys come from the record ``__keys__`` (JSON: UNITER), else from the database. Where keys are running numbers (tensorpack's LMDBSerializer)
the image is named inside the value, and all values are read once to learn the names.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data_tools.stores import MAX_RECORD, Record, needs, npz, numeric, record

_OWN = (b"keys", b"__keys__", b"__len__")
_RUNNING = re.compile(rb"\d{8,10}")  # keys of LMDBSerializer
_NAMED = ("img_id", "image_id")
_ARRAY = frozenset((b"nd", b"type", b"kind", b"shape", b"data"))


class _Open:
    """An open environment. LMDB wants one for each path and process, so that stores of one path share it."""

    def __init__(self, path: Path) -> None:
        lmdb = needs("lmdb")
        try:
            self.env = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, max_readers=1)
        except lmdb.Error as error:
            raise DataError(f"{path}: it cannot be opened as LMDB ({error})") from None
        self.read = self.env.begin(buffers=True)

    def __del__(self) -> None:
        if hasattr(self, "env"):
            self.env.close()


_OPEN: weakref.WeakValueDictionary[Path, _Open] = weakref.WeakValueDictionary()


class LmdbStore:
    """Implements ``stores.Store``; a location is the key of the database as text.

    Args:
        path: a folder with data.mdb, data.mdb itself, or a single .lmdb file.
    """

    format = "lmdb"
    classes: tuple[str, ...] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path.parent if path.name == "data.mdb" else path
        name = self.path.resolve()
        self._open = _OPEN.get(name) or _Open(self.path)
        _OPEN[name] = self._open
        self._read = self._open.read

    def _keys(self) -> list[bytes]:
        listed = self._read.get(b"__keys__")
        if listed is not None and bytes(listed[:1]) == b"[":
            try:
                return [str(key).encode("utf-8") for key in json.loads(bytes(listed))]
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self.path}: its list of keys is no JSON ({error})") from None
        return [bytes(key) for key, _ in self._read.cursor() if bytes(key) not in _OWN]

    def locations(self) -> dict[str, Any]:
        keys = self._keys()
        running = self._read.get(b"__keys__") is not None and bool(keys) and all(_RUNNING.fullmatch(key) for key in keys)
        found: dict[str, Any] = {}
        for name, key in self._inner(keys) if running else ((key, key) for key in keys):
            try:
                found[name.decode("utf-8")] = key.decode("utf-8")
            except UnicodeDecodeError:
                raise DataError(f"{self.path}: the key {key[:40]!r} is no text") from None
        return found

    def _inner(self, keys: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for key in keys:
            values = self._values(key)
            name = next((values[field] for field in _NAMED if field in values), None)
            if name is None:
                raise DataError(f"{self.path} key {key!r}: its value has no {' or '.join(_NAMED)}")
            yield (name if isinstance(name, bytes) else str(name).encode("utf-8")), key

    def _values(self, key: bytes) -> dict[str, Any]:
        data = self._read.get(key)
        if data is None:
            raise BadSample(f"there is no key {key!r}; the store changed")
        if len(data) > MAX_RECORD:
            raise BadSample(f"a value of {len(data)} bytes is larger than {MAX_RECORD}")
        return decode(bytes(data))

    def read(self, location: Any) -> Record:
        return record(self._values(str(location).encode("utf-8")))


def decode(data: bytes) -> dict[str, Any]:
    """The dict in a value: npz, pickle or msgpack, told by its first bytes.

    Raises:
        BadSample: none of them, damaged, or with what is refused.
    """
    if data[:4] == b"PK\x03\x04":
        return dict(npz(data))
    found: Any
    if (data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")) or data[:2] in (b"(d", b"}q"):
        from mmpretrain.data_tools.stores_pickle import loads

        found = loads(data)
    else:
        found = _msgpack(data)
    if not isinstance(found, dict):
        raise BadSample(f"a value is a {type(found).__name__}, not a dict of arrays")
    return {name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name): value for name, value in found.items()}


def _msgpack(data: bytes) -> Any:
    msgpack = needs("msgpack")
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, object_hook=_hook, ext_hook=_refuse)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise error if isinstance(error, BadSample) else BadSample(f"a value is neither npz, pickle nor msgpack ({error})") from None


def _refuse(code: int, data: bytes) -> Any:
    raise BadSample(f"an extension type of msgpack ({code}) is refused: only plain values and numeric arrays are read")


def _hook(found: dict[Any, Any]) -> Any:
    """The dicts by which msgpack_numpy writes arrays and numbers of numpy; every other dict as it is."""
    keys = {key.encode("utf-8") if isinstance(key, str) else key for key in found}
    if b"nd" not in keys:
        return found
    if not keys <= _ARRAY:
        raise BadSample(f"an array of msgpack with the fields {sorted(map(str, keys))} is refused")
    values = {(key.encode("utf-8") if isinstance(key, str) else key): value for key, value in found.items()}
    kind, data = values.get(b"type"), values.get(b"data")
    if values.get(b"kind", b"") not in (b"", "") or not isinstance(kind, str | bytes) or not isinstance(data, bytes):
        raise BadSample("an array of objects or records in msgpack is refused: only numbers are read")
    text = kind.decode("latin-1") if isinstance(kind, bytes) else kind
    if values[b"nd"] is not True:
        return numeric(data, text, ())[()]
    return numeric(data, text, values.get(b"shape", ()))
