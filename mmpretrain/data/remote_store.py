"""The remote shards of a reader: which are copied, which are read by ranges, which are fetched ahead."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmpretrain.data import manifest
from mmpretrain.data.errors import DataError
from mmpretrain.data.place import Remote, beside
from mmpretrain.data.remote import NoRanges, check_unchanged, download, read_all, read_range
from mmpretrain.data.retry import RemoteOptions
from mmpretrain.data.shard_cache import CacheFull, ShardCache, Told
from mmpretrain.data.stream import spool

_MANIFEST = 64 << 20  # most bytes of a manifest.json
_SAY_AFTER = 20.0  # seconds of a download


class Store:
    """Access to remote shards in one process.

    Args:
        options: how they are read.
    """

    def __init__(self, options: RemoteOptions) -> None:
        self.options, self.cache = options, ShardCache(int(options.cache_gb * 1e9))
        self.told: Callable[[Remote], Told] = _Lines  # makes what shows the progress of a download
        self._planned: tuple[Remote, ...] = ()
        self._names: frozenset[str] = frozenset()
        self._aside: set[str] = set()  # shards that found no room
        self._ranges: dict[str, bool] = {}  # by server
        self._manifests: dict[str, dict[str, Any]] = {}  # by folder
        self._ahead: _Ahead | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Store.__init__(self, state["options"])

    # ---------------------------------------------------------------- reading
    def open(self, remote: Remote) -> int | None:
        """A descriptor of the copy of a shard, which is fetched if need be; None where its samples are to be read by ranges.

        They are so in mode ``ranges``; of a shard that :meth:`want` did not name, since one sample of it (a negative) is not worth a
        copy; and of one that finds no room. A server that knows no ranges makes a copy of each.

        Raises:
            CacheFull: no room, and no ranges.
            DataError: the shard cannot be fetched, or was replaced on the server.
        """
        if (file := self.cache.open(remote.cached)) is not None:
            return file
        single = self.options.mode == "ranges" or (bool(self._planned) and remote not in self._planned) or remote.url in self._aside
        if single and self.ranges(remote):
            return None
        try:
            return self.copy(remote)
        except CacheFull as error:
            if not self.ranges(remote):
                raise
            self._aside.add(remote.url)
            _say(f"warning: {error}; until then {remote} is read sample by sample")
            return None

    def copy(self, remote: Remote) -> int:
        """A descriptor of the copy of a shard, made now if need be, and pinned until it is closed.

        Raises:
            CacheFull, DataError: see :meth:`open`.
        """
        for _ in range(3):  # another process may evict it right away
            self.fetch(remote)
            if (file := self.cache.open(remote.cached)) is not None:
                return file
        raise CacheFull(f"{self.cache.folder}: {remote} is evicted as soon as it is there; raise data.remote.cache_gb")

    def read(self, remote: Remote, start: int, length: int) -> bytes:
        """Bytes of a shard by a ranged request.

        Raises:
            DataError: they cannot be read.
        """
        return read_range(remote, start, start + length, self.options)

    def ranges(self, remote: Remote) -> bool:
        """Whether the server sends parts of this shard."""
        if remote.is_command or remote.size is None:
            return False
        server = "//".join(urlsplit(remote.url)[:2])
        if server not in self._ranges:
            try:
                read_range(remote, remote.size - 1, remote.size, self.options)
                self._ranges[server] = True
            except NoRanges:
                self._ranges[server] = False
        return self._ranges[server]

    def doubt(self, remote: Remote) -> bool:
        """After bytes that do not fit the index: whether a copy was dropped, so that fetching it again may help.

        Raises:
            Replaced: the shard changed on the server.
        """
        if not remote.is_command:
            check_unchanged(remote, self.options)
        there = self.cache.has(remote.cached)
        self.cache.discard(remote.cached)
        return there

    # ---------------------------------------------------------------- fetching
    def fetch(self, remote: Remote, wait: bool = True, force: bool = True) -> bool:
        """Make the copy of a shard; see :meth:`ShardCache.fetch`."""

        def receive(part: Path, grown: Told) -> None:
            shown = self.told(remote)

            def told(more: int) -> None:
                grown(more)
                shown(more)

            if remote.is_command:
                spool(remote, part, told)
            else:
                download(remote, part, told, self.options)
            self._verify(remote, part)

        return self.cache.fetch(remote.cached, remote.size, receive, wait, self._names, force)

    def _verify(self, remote: Remote, part: Path) -> None:
        """Compare a copy with ``manifest.json`` beside the shard, where there is one that names it."""
        if remote.is_command:
            return
        folder = beside(remote.url, "manifest.json")
        if folder not in self._manifests:
            self._manifests[folder] = manifest.entries(read_all(folder, _MANIFEST, self.options))
        known = self._manifests[folder].get(urlsplit(remote.url).path.rpartition("/")[2], {})
        size, digest = known.get("bytes"), known.get("sha256")
        if size is not None and size != part.stat().st_size:
            raise DataError(f"{remote}: {part.stat().st_size} bytes, but its manifest.json says {size}; upload the shard again")
        if digest is not None and manifest.sha256(part) != digest:
            raise DataError(f"{remote}: its sha256 is not that of its manifest.json; upload the shard again")

    # ---------------------------------------------------------------- ahead
    def want(self, remotes: Sequence[Remote]) -> None:
        """Fetch these in the background, in this order, as far as there is room beside them; they are evicted last."""
        wanted = tuple(remotes)
        if wanted == self._planned and self._process == os.getpid():
            return
        self._planned, self._names = wanted, frozenset(one.cached for one in wanted)
        if self._process != os.getpid():  # threads do not survive a fork
            self._ahead, self._process = None, os.getpid()
        if self.options.mode == "cache" and wanted:
            if self._ahead is None:
                self._ahead = _Ahead(lambda one: self.fetch(one, wait=False, force=False))
            self._ahead.put(wanted)

    def close(self) -> None:
        """End fetching ahead after the shard that is under way."""
        if self._ahead is not None and self._process == os.getpid():
            self._ahead.put(None)
            self._ahead, self._planned = None, ()

    @contextlib.contextmanager
    def pinned(self, remote: Remote) -> Iterator[Path]:
        """The path of the copy of a shard, which stays while it is used."""
        file = self.copy(remote)
        try:
            yield self.cache.path(remote.cached)
        finally:
            self.cache.close(file)


class _Ahead:
    """A thread that fetches a list of shards. An error is left to the reader that needs the shard."""

    def __init__(self, fetch: Callable[[Remote], object]) -> None:
        self.fetch = fetch
        self.todo: list[Remote] | None = []  # None: the end
        self.changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True, name="mmpretrain-ahead").start()

    def put(self, wanted: Sequence[Remote] | None) -> None:
        """What is to be fetched now instead of what was; None: nothing any more."""
        with self.changed:
            self.todo = list(wanted) if wanted is not None and self.todo is not None else None
            self.changed.notify()

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.todo != [])
                if self.todo is None:
                    return
                one = self.todo.pop(0)
            try:
                self.fetch(one)
            except CacheFull:
                self.put(())  # until the plan goes on
            except (DataError, OSError):
                continue


class _Lines:
    """Says how far a download is, where it takes long; each time after twice as long."""

    def __init__(self, remote: Remote) -> None:
        self.remote, self.done, self.began, self.next = remote, 0, time.monotonic(), _SAY_AFTER

    def __call__(self, more: int) -> None:
        self.done += more
        if (spent := time.monotonic() - self.began) > self.next:
            self.next *= 2
            whole = f" of {self.remote.size / 1e6:.0f}" if self.remote.size is not None else ""
            _say(f"fetching {self.remote}: {self.done / 1e6:.0f}{whole} MB after {spent:.0f} s")


def _say(text: str) -> None:
    print(f"mmpretrain: {text}", file=sys.stderr, flush=True)
