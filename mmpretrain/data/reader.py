"""Random access to the samples of many shards: one ``pread`` per sample (one more behind a large member that is not read), checksums
verified, safe in forked and spawned workers.

Of remote shards it reads copies in the cache, or ranges; see ``remote_store.py``.
"""

from __future__ import annotations

import errno
import itertools
import os
import resource
import time
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmpretrain.data import working
from mmpretrain.data.cache import unlock
from mmpretrain.data.decode import CODES, REGIONS, TEXTS, assemble, limit
from mmpretrain.data.errors import BadSample, DataError, named
from mmpretrain.data.index import ShardIndex, fingerprint, index_path, load, open_index, open_indexes
from mmpretrain.data.mapped import more_files
from mmpretrain.data.place import Remote, beside
from mmpretrain.data.remote import read_all
from mmpretrain.data.remote_index import index_path as index_of
from mmpretrain.data.remote_index import open_all, open_remote
from mmpretrain.data.remote_store import Store
from mmpretrain.data.retry import RemoteOptions, pause
from mmpretrain.data.sources import Shard, shards
from mmpretrain.types import Sample

_BESIDE = 1 << 30  # bytes
_GAP = 1 << 20  # bytes between two members of a sample that are rather read than skipped
_TRIES = 4  # of a disk that fails: a few seconds


def open_reader(
    sources: str | Sequence[str], split: str = "train", remote: RemoteOptions | None = None, allow_pipe: bool = False
) -> ShardReader:
    """The samples of what a user names; see :func:`mmpretrain.data.sources.shards`.

    Raises:
        DataError: a source that cannot be read, or a damaged shard.
    """
    return ShardReader(shards(sources, split, remote, allow_pipe), remote=remote)


def most_files() -> int:
    """Shards that a process holds open: 128, or a quarter of the descriptors it may have."""
    return max(8, min(128, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


def _stretches(wanted: list[tuple[str, int, int, int]]) -> list[list[tuple[str, int, int, int]]]:
    """Members in the order of a shard, those together that are read at once: nearly always all."""
    found = [[wanted[0]]]
    for before, entry in itertools.pairwise(wanted):
        if entry[1] - (before[1] + before[2]) > _GAP:
            found.append([])
        found[-1].append(entry)
    return found


class ShardReader:
    """All samples of some shards, by number.

    Args:
        paths: tar files, in the order that numbers the samples. Their indexes are made where they are missing.
        indexes: their indexes, if they are at hand.
        remote: how those that lie elsewhere are read.

    Raises:
        DataError: a damaged shard, or one that cannot be fetched.
    """

    def __init__(
        self, paths: Sequence[Shard | str], indexes: Sequence[ShardIndex] | None = None, remote: RemoteOptions | None = None
    ) -> None:
        self.paths: tuple[Shard, ...] = tuple(path if isinstance(path, Remote) else Path(path) for path in paths)
        self.is_remote = any(isinstance(path, Remote) for path in self.paths)
        self._store = Store(remote or RemoteOptions())
        self._planned: list[Remote] = []
        self._doubted: set[int] = set()  # shards whose copies were fetched again
        self.indexes = list(indexes) if indexes is not None else self._open_indexes()
        self.ends = np.cumsum([len(index) for index in self.indexes])
        self._files: OrderedDict[int, int] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict:
        return {"paths": self.paths, "remote": self.remote}  # a spawned worker maps the indexes itself

    def __setstate__(self, state: dict) -> None:
        store = Store(state["remote"])
        indexes = [
            open_remote(path, store) if isinstance(path, Remote) else load(path, index_path(path)) or open_index(path)
            for path in state["paths"]
        ]
        ShardReader.__init__(self, state["paths"], indexes, state["remote"])

    def _open_indexes(self) -> list[ShardIndex]:
        there = [path for path in self.paths if isinstance(path, Remote)]
        if not there:
            return open_indexes([path for path in self.paths if isinstance(path, Path)])
        here = [path for path in self.paths if isinstance(path, Path)]
        local, remote = iter(open_indexes(here) if here else ()), iter(open_all(there, self._store))
        return [next(local) if isinstance(path, Path) else next(remote) for path in self.paths]

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the files that this process opened, and fetch nothing ahead any more. Whoever reads on opens them again."""
        if getattr(self, "_process", None) == os.getpid():
            for shard in list(self._files):
                self._shut(shard)
            self._store.close()
            self._planned = []

    def prefetch(self, shards: Sequence[int]) -> None:
        """What the next batches read: the shards of now and of soon, in the order of their use.

        Remote ones are fetched in the background; copies of others are given free. Local shards need nothing. Cheap if nothing changed.
        """
        wanted = [path for shard in shards if isinstance(path := self.paths[shard], Remote)]
        if wanted != self._planned:
            self._planned = wanted
            self._own_files()
            for shard in [shard for shard in self._files if isinstance(path := self.paths[shard], Remote) and path not in wanted]:
                self._shut(shard)
        if wanted:
            self._store.want(wanted)

    @property
    def remote(self) -> RemoteOptions:
        """How shards that lie elsewhere are read."""
        return self._store.options

    def beside(self, shard: int, name: str) -> bytes | None:
        """A file in the folder of a shard, at most 1 GiB of it; None where there is none."""
        path = self.paths[shard]
        if isinstance(path, Remote):
            return None if path.is_command else read_all(beside(path.url, name), _BESIDE, self.remote)
        return path.with_name(name).read_bytes() if path.with_name(name).is_file() else None

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
        return named(str(self.paths[shard]), self.indexes[shard].key(sample))

    def read_at(self, shard: int, sample: int, images: bool = True, regions: bool | None = None, codes: bool | None = None) -> Sample:
        """Sample ``sample`` of shard ``shard``.

        Args:
            images: False leaves pictures out, which are then empty bytes.
            regions: False leaves regions out, which are then None; None: as ``images``.
            codes: False leaves image codes out, which are then None; None: as ``images``.

        Raises:
            BadSample: naming shard and key, where bytes differ from the index or texts break the rules.
            DataError: the disk, or the way to it, fails for seconds: never the fault of a sample.
        """
        working.note(self.name(shard, sample))
        index = self.indexes[shard]
        wanted = index.members(sample)
        read = {name: images if wish is None else wish for name, wish in ((REGIONS, regions), (CODES, codes))} | dict.fromkeys(TEXTS, True)
        unread = {name: None for name, *_ in wanted if not read.get(name, images)}
        wanted = [entry for entry in wanted if entry[0] not in unread]
        try:
            members = self._tried(shard, wanted)
            return assemble(index.key(sample), {**members, **unread})
        except BadSample as error:
            raise BadSample.of(self.paths[shard], index.key(sample), error) from None
        except OSError as error:
            where, why = self.name(shard, sample), error.strerror or error
            raise DataError(f"{where}: {why}, {_TRIES} times: the shard cannot be read; mend the disk or the way to it") from None

    def _tried(self, shard: int, wanted: list[tuple[str, int, int, int]]) -> dict[str, bytes]:
        """The members, at the first try that meets no OSError; the shard is opened anew for each, since that of a network disk that was
        away for a moment is stale."""
        for tried in range(1, _TRIES):
            try:
                return self._members(shard, wanted)
            except OSError:
                if shard in self._files:
                    self._shut(shard)
            time.sleep(pause(str(self.paths[shard]), tried))
        return self._members(shard, wanted)

    def _members(self, shard: int, wanted: list[tuple[str, int, int, int]]) -> dict[str, bytes]:
        if not wanted:
            return {}
        for name, _, size, _ in wanted:
            if (most := limit(name)) is not None and size > most:
                raise BadSample(f"{name} of {size} bytes is longer than {most}")
        members = {}
        for near in _stretches(wanted):
            start = near[0][1]
            data = self._pread(shard, start, max(offset + size for _, offset, size, _ in near) - start)
            for name, offset, size, crc in near:
                members[name] = data[offset - start : offset - start + size]
                if zlib.crc32(members[name]) != crc:
                    if self._doubt(shard):
                        return self._members(shard, wanted)
                    raise BadSample(f"the bytes of {name} at offset {offset} changed since the shard was indexed; {self._remedy(shard)}")
        return members

    def _remedy(self, shard: int) -> str:
        path = self.paths[shard]
        if isinstance(path, Remote):
            return f"upload the shard and the index beside it again, and delete {index_of(path)}"
        return "copy the shard again"

    def _doubt(self, shard: int) -> bool:
        """Whether a remote shard whose bytes do not fit its index is worth another look: once, since the copy may be damaged."""
        path = self.paths[shard]
        if not isinstance(path, Remote) or shard in self._doubted:
            return False
        self._doubted.add(shard)
        if shard in self._files:
            self._shut(shard)
        return self._store.doubt(path)

    def _pread(self, shard: int, start: int, length: int) -> bytes:
        file, path, pieces = self._file(shard), self.paths[shard], []
        if file is None:
            assert isinstance(path, Remote)
            return self._store.read(path, start, length)
        while length:
            piece = os.pread(file, length, start)
            if not piece:
                raise BadSample(f"the shard ends before offset {start + length}: it was cut after it was indexed; copy it again")
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return b"".join(pieces) if len(pieces) != 1 else pieces[0]

    def _own_files(self) -> None:
        if self._process != os.getpid():  # forked: descriptors of the parent are left alone
            self._files, self._process = OrderedDict(), os.getpid()

    def _file(self, shard: int) -> int | None:
        """A descriptor of a shard or of its copy; None: read ranges."""
        self._own_files()
        if shard not in self._files:
            path = self.paths[shard]
            file = self._open(path)
            if file is None:
                return None
            self._files[shard] = file
            if os.fstat(file).st_size != self.indexes[shard].tar_size:
                self._shut(shard)
                raise DataError(f"{path}: its size changed since it was indexed; do not change shards during a run")
            while len(self._files) > most_files():
                self._shut(next(iter(self._files)))
        self._files.move_to_end(shard)
        return self._files[shard]

    def _open(self, path: Shard) -> int | None:
        """Where the process has no descriptor left, its limit is raised, then those of other shards are given back. A lack of them is
        never the fault of a sample."""
        while True:
            try:
                return self._store.open(path) if isinstance(path, Remote) else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                if not more_files() and not self._files:
                    raise DataError(
                        f"{path}: the process has no file descriptor left to open it; raise the limit (ulimit -n 65536)"
                    ) from None
            while self._files:
                self._shut(next(iter(self._files)))

    def _shut(self, shard: int) -> None:
        file = self._files.pop(shard)
        unlock(file)  # of a copy in the cache
        os.close(file)
