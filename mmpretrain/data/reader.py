"""Random access to the samples of many shards: one ``pread`` per sample, checksums verified, safe in forked and spawned workers."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmpretrain.data.decode import TEXTS, assemble, limit
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.index import ShardIndex, fingerprint, index_path, load, open_index, open_indexes
from mmpretrain.types import Sample

_OPEN_FILES = 128


class ShardReader:
    """All samples of some shards, by number.

    Args:
        paths: tar files, in the order that numbers the samples. Their indexes are made where they are missing.
        indexes: their indexes, if they are at hand.

    Raises:
        DataError: a damaged shard.
    """

    def __init__(self, paths: Sequence[Path | str], indexes: Sequence[ShardIndex] | None = None) -> None:
        self.paths = tuple(Path(path) for path in paths)
        self.indexes = list(indexes) if indexes is not None else open_indexes(self.paths)
        self.ends = np.cumsum([len(index) for index in self.indexes])
        self._files: OrderedDict[int, int] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict:
        return {"paths": self.paths}  # a spawned worker maps the indexes itself

    def __setstate__(self, state: dict) -> None:
        paths = state["paths"]
        ShardReader.__init__(self, paths, [load(path, index_path(path)) or open_index(path) for path in paths])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the files that this process opened."""
        if getattr(self, "_process", None) == os.getpid():
            while self._files:
                os.close(self._files.popitem()[1])

    @property
    def fingerprint(self) -> str:
        """sha256 of the contents of all shards in their order."""
        return fingerprint(self.indexes)

    def locate(self, number: int) -> tuple[int, int]:
        """(shard, sample in it) of sample ``number``."""
        if not 0 <= number < len(self):
            raise IndexError(f"samples run from 0 to {len(self) - 1}, not {number}")
        shard = int(np.searchsorted(self.ends, number, side="right"))
        return shard, number - (int(self.ends[shard - 1]) if shard else 0)

    def read(self, number: int) -> Sample:
        """Sample ``number``, encoded as it lies in its shard."""
        return self.read_at(*self.locate(number))

    def name(self, shard: int, sample: int) -> str:
        """How messages name a sample: shard and key."""
        return f"{self.paths[shard]} key {self.indexes[shard].key(sample)!r}"

    def read_at(self, shard: int, sample: int, images: bool = True) -> Sample:
        """Sample ``sample`` of shard ``shard``.

        Args:
            images: False reads only the texts; pictures are then empty bytes, regions None.

        Raises:
            BadSample: naming shard and key, where bytes differ from the index or texts break the rules.
        """
        index = self.indexes[shard]
        wanted = index.members(sample)
        pictures = {name: None for name, *_ in wanted if name not in TEXTS} if not images else {}
        wanted = [entry for entry in wanted if entry[0] not in pictures]
        try:
            members = self._members(shard, wanted)
            return assemble(index.key(sample), {**members, **pictures})
        except BadSample as error:
            raise BadSample(f"{self.name(shard, sample)}: {error}") from None
        except OSError as error:
            raise BadSample(f"{self.name(shard, sample)}: {error.strerror or error}") from None

    def _members(self, shard: int, wanted: list[tuple[str, int, int, int]]) -> dict[str, bytes]:
        if not wanted:
            return {}
        for name, _, size, _ in wanted:
            if (most := limit(name)) is not None and size > most:
                raise BadSample(f"{name} of {size} bytes is longer than {most}")
        start = wanted[0][1]
        length = max(offset + size for _, offset, size, _ in wanted) - start
        data = self._pread(shard, start, length)
        members = {}
        for name, offset, size, crc in wanted:
            members[name] = data[offset - start : offset - start + size]
            if zlib.crc32(members[name]) != crc:
                raise BadSample(f"the bytes of {name} at offset {offset} changed since the shard was indexed; copy the shard again")
        return members

    def _pread(self, shard: int, start: int, length: int) -> bytes:
        file, pieces = self._file(shard), []
        while length:
            piece = os.pread(file, length, start)
            if not piece:
                raise BadSample(f"the shard ends before offset {start + length}: it was cut after it was indexed; copy it again")
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return b"".join(pieces) if len(pieces) != 1 else pieces[0]

    def _file(self, shard: int) -> int:
        if self._process != os.getpid():  # forked: descriptors of the parent are left alone
            self._files, self._process = OrderedDict(), os.getpid()
        if shard not in self._files:
            file = os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
            if os.fstat(file).st_size != self.indexes[shard].tar_size:
                os.close(file)
                raise DataError(f"{self.paths[shard]}: its size changed since it was indexed; do not change shards during a run")
            self._files[shard] = file
            while len(self._files) > _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        return self._files[shard]
