"""Bytes that can only be read from their start to their end: what a command writes (``pipe:``), and standard input (``-``).

They are spooled once into the shard cache as a plain tar, by webdataset's opener, which hands over raw bytes and decodes nothing; from
then on they are shards like others. A stream that does not fit the cache, or never ends, is refused.
"""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data.place import Remote
from mmpretrain.data.retry import DiskFull, RemoteError, RemoteOptions
from mmpretrain.data.shard_cache import CacheFull, ShardCache, Told

_PIECE = 1 << 20
_INPUT: dict[str, tuple[Path, int | None]] = {}  # the copy of standard input of this process, and the descriptor that pins it


def spool(remote: Remote, target: Path, told: Told) -> None:
    """Run the command of a ``pipe:`` shard and write what it prints into a file.

    Raises:
        RemoteError: it failed, or wrote nothing.
        CacheFull: it writes more than the cache holds.
    """
    from webdataset.gopen import gopen

    try:
        stream = gopen(remote.url, "rb")
    except ValueError:
        raise DataError(f"{remote}: webdataset refuses to run commands, since WDS_SECURE is set in the environment") from None
    try:
        size = _copy(stream, target, told)
        stream.close()  # checks the status too
    except OSError:
        if stream.status is None:
            raise
        raise RemoteError(f"{remote}: the command ended with status {stream.status}; run it by hand to see why") from None
    finally:
        if stream.proc.poll() is None:  # left early: a command that goes on would be waited for
            stream.proc.kill()
    if not size:
        raise RemoteError(f"{remote}: the command wrote nothing; run it by hand to see why")


def _copy(stream: Any, target: Path, told: Told) -> int:
    """Raises DiskFull; OSError of the stream."""
    size = 0
    with open(target, "wb") as file:
        while piece := stream.read(_PIECE):
            told(len(piece))
            try:
                size += file.write(piece)
                file.flush()
            except OSError as error:
                raise DiskFull(error.errno, error.strerror) from None
        os.fsync(file.fileno())
    return size


def standard_input(options: RemoteOptions) -> Path:
    """The tar that comes in on standard input, as a file in the shard cache, named by its contents; read once in a process.

    Raises:
        DataError: nothing comes in, or this is not the first process of its machine.
        CacheFull: it is longer than the cache.
    """
    if "-" in _INPUT:
        return _INPUT["-"][0]
    if os.environ.get("LOCAL_RANK", "0") != "0":
        raise DataError("data: standard input can be read by one process only; write it to a file first, or train in one process")
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise DataError(
            "data: source '-' is standard input, but nothing comes in; such as: cat shard.tar | mmpretrain fit --data.train - ..."
        )
    from webdataset.gopen import gopen

    cache = ShardCache(int(options.cache_gb * 1e9))
    name = f"{uuid.uuid4().hex}-stdin.tar"  # not of the number of the process: containers that share a cache have the same ones
    try:
        cache.fetch(name, None, lambda part, told: _receive(gopen("-", "rb"), part, told))
    except CacheFull as error:
        raise CacheFull(f"data: standard input does not fit the cache: {error}; or write it into shards first") from None
    path = cache.path(f"{_sha256(cache.path(name))[:16]}-stdin.tar")
    os.replace(cache.path(name), path)
    _INPUT["-"] = (path, cache.open(path.name))
    print(
        f"mmpretrain: standard input is kept as {path} ({path.stat().st_size} bytes) until the cache needs the room; "
        "resuming needs the same bytes again: name that file, or send them in once more",
        file=sys.stderr,
    )
    return path


def _receive(stream: Any, part: Path, told: Told) -> None:
    if not _copy(stream, part, told):
        raise DataError("data: source '-' is standard input, but nothing came in")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
