"""The indexes of remote shards: the file beside the shard, else made of its copy; kept in ``$MMPRETRAIN_CACHE/index`` by version."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from mmpretrain.data import index as indexes
from mmpretrain.data.cache import cache_root, locked, write_atomic
from mmpretrain.data.errors import DataError
from mmpretrain.data.index import ShardIndex
from mmpretrain.data.place import Remote, beside
from mmpretrain.data.remote import read_all
from mmpretrain.data.remote_store import Store
from mmpretrain.data.shard_cache import INDEX, Told

_THREADS = 8
_SHOW_PROGRESS = 32 << 20  # bytes to fetch
_MOST = 1 << 30  # bytes of an index file


def index_path(remote: Remote) -> Path:
    """Where the index of a remote shard is kept."""
    return cache_root() / "index" / (remote.cached + INDEX)


def saved(remote: Remote, store: Store) -> ShardIndex | None:
    """The index of a remote shard from the cache; None where there is none, or it is of another shard or version.

    What a server tells neither size nor version of may change unseen: its index counts only beside the copy that it was made of.
    """
    copy = store.cache.path(remote.cached)
    try:
        stamp, index = indexes.parse(copy, index_path(remote))
        size = remote.size if remote.size is not None else copy.stat().st_size
        return index if stamp[0] == indexes.VERSION and index.tar_size == size else None
    except (OSError, ValueError):
        return None


def open_remote(remote: Remote, store: Store) -> ShardIndex:
    """The index of a remote shard, fetched or made and then kept; once for all processes of this machine.

    Raises:
        DataError: the shard is damaged or cannot be read.
    """
    if (found := saved(remote, store)) is not None:
        return found
    target = index_path(remote)
    with locked(str(target)):
        if (found := saved(remote, store)) is not None:
            return found
        if not remote.is_command and remote.size is not None:
            name = urlsplit(remote.url).path.rpartition("/")[2] + INDEX
            data = read_all(beside(remote.url, name), _MOST, store.options)
            if data is not None:
                write_atomic(target, data)
                if (found := saved(remote, store)) is not None:
                    return found
        with store.pinned(remote) as path:
            try:
                made = indexes.build(path)
            except DataError as error:
                store.cache.discard(remote.cached)
                raise DataError(str(error).replace(str(path), str(remote))) from None
            indexes.save(made, target)
            return saved(remote, store) or made


def open_all(remotes: Sequence[Remote], store: Store) -> list[ShardIndex]:
    """The indexes of many remote shards, with a progress bar where much has to be fetched.

    Raises:
        DataError: see :func:`open_remote`.
    """
    missing = [remote for remote in remotes if not index_path(remote).exists()]
    with _bar(missing, store), ThreadPoolExecutor(max(1, min(_THREADS, len(remotes)))) as pool:
        return list(pool.map(lambda remote: open_remote(remote, store), remotes))


@contextlib.contextmanager
def _bar(remotes: Sequence[Remote], store: Store) -> Iterator[None]:
    """Show downloads in one bar; it counts what is really fetched, since an index beside a shard saves it."""
    if sum(remote.size or 0 for remote in remotes) <= _SHOW_PROGRESS:
        yield
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    plain, lock = store.told, threading.Lock()
    with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("Indexes of remote shards", total=0)

        def told(remote: Remote) -> Told:
            with lock:
                whole = (progress.tasks[0].total or 0) + (remote.size or 0)
                progress.update(task, description="Fetching shards that have no index beside them", total=whole)
            return lambda more: progress.advance(task, more)

        store.told = told
        try:
            yield
        finally:
            store.told = plain
