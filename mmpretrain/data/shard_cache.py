"""Copies of remote shards on this machine: fetched once for all processes, never seen in part, bounded in bytes, unused ones out first.

A copy is ``$MMPRETRAIN_CACHE/shards/HASH-NAME.tar``. Whoever reads it holds a shared lock on the open file, which pins it; a download is a
hidden ``.part`` file under an exclusive lock, whose name tells the bytes that it will take. Locks end with their process, so that nothing
stays pinned or reserved after a kill.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from mmpretrain.data.cache import cache_root, flock, locked, unlock
from mmpretrain.data.errors import DataError
from mmpretrain.data.retry import DiskFull

_PART = re.compile(r"\..+\.(\d+)\.\w+\.part")
_SPARE = 64 << 20  # bytes of the disk that are left free
_STEP = 64 << 20  # bytes that a download of unknown size reserves at a time
_REMEDY = "raise data.remote.cache_gb, set MMPRETRAIN_CACHE to a larger disk, or lower data.block"
INDEX = ".idx.npz"
Told = Callable[[int], None]
Receive = Callable[[Path, Told], None]


class CacheFull(DataError):
    """The cache has no room for a shard. Names the folder."""


class _Entry(NamedTuple):
    used: float  # when it was last opened, in seconds
    name: str
    size: int


class ShardCache:
    """The folder of copies.

    Args:
        most: bytes that all copies together may have.
    """

    def __init__(self, most: int) -> None:
        self.most, self.folder = most, cache_root() / "shards"

    def path(self, name: str) -> Path:
        """Where the copy ``name`` is, or would be."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether there is a copy."""
        return self.path(name).exists()

    def open(self, name: str) -> int | None:
        """A descriptor of a copy, pinned until :meth:`close`; None where there is none."""
        path = self.path(name)
        while True:
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            flock(file, shared=True)
            with contextlib.suppress(OSError):  # a cache that only its owner may write: read all the same
                os.utime(file)
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
            os.close(file)  # evicted between the two

    @staticmethod
    def close(file: int) -> None:
        """Close and unpin."""
        unlock(file)
        os.close(file)

    def fetch(
        self, name: str, size: int | None, receive: Receive, wait: bool = True, keep: Collection[str] = (), force: bool = True
    ) -> bool:
        """Make the copy ``name`` unless it exists, once for all processes of this machine.

        Args:
            size: of the shard in bytes, None if it is not known.
            receive: writes the whole, checked shard into the file that it is given, and tells of every number of bytes more.
            wait: for another process that is fetching it; otherwise return False at once.
            keep: copies that are evicted last.
            force: evict even those.

        Returns:
            Whether the copy is there.

        Raises:
            CacheFull: no room.
            DataError: of ``receive``.
        """
        if self.has(name):
            return True
        with locked(str(self.path(name)), wait) as held:
            if not held:
                return False
            if self.has(name):
                return True
            with self._part(name, size, keep, force) as part:
                receive(part, _nothing if size is not None else _Growth(self, name, keep))
                os.chmod(part, 0o644)
                os.replace(part, self.path(name))
        return True

    def discard(self, name: str) -> None:
        """Delete a copy. Who has it open keeps reading it."""
        for path in (self.path(name), self.path(name + INDEX)):
            path.unlink(missing_ok=True)

    def usage(self) -> tuple[int, int]:
        """(copies, their bytes)."""
        entries = self._entries() if self.folder.is_dir() else []
        return len(entries), sum(entry.size for entry in entries)

    @contextlib.contextmanager
    def _part(self, name: str, size: int | None, keep: Collection[str], force: bool) -> Iterator[Path]:
        """A file for a download, with its bytes reserved."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._room():
                self.make_room(size or 0, name, keep, force)
                descriptor, made = tempfile.mkstemp(prefix=f".{name}.{size or 0}.", suffix=".part", dir=self.folder)
                flock(descriptor)
        except OSError as error:
            raise CacheFull(f"{self.folder} cannot be written ({error.strerror}); set MMPRETRAIN_CACHE to a folder that can") from None
        try:
            yield Path(made)
        except DiskFull as error:
            raise CacheFull(f"{self.folder}: no room for {name} ({error.strerror}); {_REMEDY}") from None
        finally:
            Path(made).unlink(missing_ok=True)
            self.close(descriptor)

    def _room(self) -> contextlib.AbstractContextManager[bool]:
        return locked(f"room in {self.folder}")

    def make_room(self, size: int, name: str, keep: Collection[str] = (), force: bool = True) -> None:
        """Evict copies until ``size`` more bytes fit; with the lock of the room held.

        Raises:
            CacheFull: what is left is open, kept or not ours.
        """
        coming, promised = self._parts()
        entries = self._entries()
        total = coming + sum(entry.size for entry in entries)
        free = shutil.disk_usage(self.folder).free - promised - _SPARE
        for entry in sorted(entries, key=lambda one: (one.name in keep, one.used)):
            if (total + size <= self.most and size <= free) or (entry.name in keep and not force):
                break
            if self._evict(entry.name):
                total, free = total - entry.size, free + entry.size
        if total + size > self.most:
            raise CacheFull(
                f"{self.folder}: {name} needs {_gb(size)} and {_gb(total)} are in use, more than "
                f"data.remote.cache_gb={self.most / 1e9:g}; {_REMEDY}"
            )
        if size > free:
            raise CacheFull(f"{self.folder}: the disk has no room for {name} of {_gb(size)}; {_REMEDY}")

    def _entries(self) -> list[_Entry]:
        found = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # evicted by another process
                if not entry.name.startswith(".") and not entry.name.endswith(INDEX):
                    found.append(_Entry(entry.stat().st_mtime, entry.name, entry.stat().st_size))
        return found

    def _parts(self) -> tuple[int, int]:
        """(bytes of the downloads under way once whole, those of them not yet written). What killed processes left is deleted."""
        coming = promised = 0
        for path in self.folder.glob(".*.part"):
            declared = _PART.fullmatch(path.name)
            with contextlib.suppress(FileNotFoundError):
                written = path.stat().st_size
                if self._deleted(path):
                    continue
                size = max(written, int(declared[1]) if declared else 0)
                coming, promised = coming + size, promised + size - written
        return coming, promised

    def _evict(self, name: str) -> bool:
        if done := self._deleted(self.path(name)):
            self.path(name + INDEX).unlink(missing_ok=True)
        return done

    def _deleted(self, path: Path) -> bool:
        """Delete a file unless a process has it locked; whether it is gone."""
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            if not flock(file, wait=False):
                return False
            path.unlink(missing_ok=True)
            return True
        finally:
            self.close(file)


def _nothing(_: int) -> None:
    """Of a shard whose size is known the room is reserved before."""


class _Growth:
    """Reserves room for a download of unknown size while it grows."""

    def __init__(self, cache: ShardCache, name: str, keep: Collection[str]) -> None:
        self.cache, self.name, self.keep, self.reserved, self.written = cache, name, keep, 0, 0

    def __call__(self, more: int) -> None:
        self.written += more
        if self.written > self.reserved:
            step = min(_STEP, max(1, self.cache.most // 8))
            try:
                with self.cache._room():
                    self.cache.make_room(step, self.name, self.keep)
            except CacheFull as error:
                raise CacheFull(f"{error}; {self.name} is not at its end after {_gb(self.written)}: an endless one has no place") from None
            self.reserved = self.written + step


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10_000_000 else f"{size / 1e6:.2f} MB"
