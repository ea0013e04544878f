"""Shards that lie elsewhere, over fsspec: what a server says of them, ranges of their bytes, whole copies; tried again where that helps.

Credentials come from where fsspec and its backends look for them: ``AWS_PROFILE`` and the other ``AWS_`` variables (``AWS_ENDPOINT_URL``
for other S3 servers), Google's default credentials, ``~/.netrc``, ``FSSPEC_S3_ANON=true`` and the like, or files in ``~/.config/fsspec``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from mmpretrain.data.errors import DataError
from mmpretrain.data.place import Remote, kind, shown
from mmpretrain.data.retry import LASTING, RemoteError, RemoteOptions, retried

T = TypeVar("T")
_PACKAGES = {"http": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
_TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "generation", "Last-Modified", "LastModified", "mtime")
_THREADS = 16
_LISTED = 8  # shards of one folder from which on it is listed rather than each of them asked for


class Replaced(DataError):
    """A shard is no longer the one that the run started with."""


class NoRanges(DataError):
    """The server sends whole files only."""


class Incomplete(OSError):
    """Fewer or more bytes came than the server has."""


# ---------------------------------------------------------------- backends
class Backend(NamedTuple):
    """A file system of fsspec and what it raises."""

    fs: Any
    errors: tuple[type[Exception], ...]


_backends: dict[tuple[int, str, float], Backend] = {}  # by process: connections do not survive a fork
_lock = threading.Lock()


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def backend(url: str, timeout: float) -> Backend:
    """The file system of an address in this process.

    Raises:
        DataError: its package is not installed; names the extra.
    """
    name = kind(url)
    key = (os.getpid(), name, timeout)
    with _lock:
        if key not in _backends:
            try:
                _backends[key] = _make(name, timeout)
            except ImportError as error:
                missing = _PACKAGES[name]
                raise DataError(
                    f"{shown(url)}: reading it needs the package {missing}, which is not installed ({error}); "
                    "pip install 'mmpretrain-vl[remote]'"
                ) from None
        return _backends[key]


def _make(name: str, timeout: float) -> Backend:
    import aiohttp
    import fsspec

    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    errors: list[type[Exception]] = [OSError, aiohttp.ClientError]
    if name == "http":
        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        told = {**fsspec.config.conf.get("https", {}), **fsspec.config.conf.get("http", {})}.get("client_kwargs", {})
        options["client_kwargs"] = {"timeout": limits, "trust_env": True, **told}
    elif name == "s3":
        from botocore.exceptions import BotoCoreError, ClientError

        told = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        limit = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 1}}
        options["config_kwargs"] = {**limit, **told}
        errors += [BotoCoreError, ClientError]
    else:
        from gcsfs.retry import ChecksumError, HttpError
        from google.auth.exceptions import GoogleAuthError

        errors += [HttpError, ChecksumError, GoogleAuthError]
    return Backend(fsspec.filesystem(name, **options), tuple(errors))


def _call(url: str, action: Callable[[Any], T], options: RemoteOptions, lasting: int = 3) -> T:
    found = backend(url, options.timeout)
    return retried(lambda: action(found.fs), shown(url), found.errors, options, lasting)


# ---------------------------------------------------------------- what a server says
def look(url: str, options: RemoteOptions) -> Remote:
    """One shard as it is now.

    Raises:
        RemoteError: it cannot be found or read.
    """
    if url.startswith("pipe:"):
        return Remote(url)
    return _remote(url, _call(url, lambda fs: fs.info(url), options))


def _remote(url: str, info: dict[str, Any]) -> Remote:
    tag = next((str(info[name]) for name in _TAGS if info.get(name)), "")
    size = info.get("size")
    return Remote(url, int(size) if size is not None else None, tag)


def look_all(urls: Sequence[str], options: RemoteOptions) -> list[Remote]:
    """Shards as they are now, in the order given; a folder of a bucket with many of them is listed once.

    Raises:
        RemoteError: one cannot be found or read.
    """
    folders: dict[str, list[str]] = {}
    for url in urls:
        if kind(url) in ("s3", "gs"):
            folders.setdefault(url.rpartition("/")[0] + "/", []).append(url)
    found: dict[str, Remote] = {}
    for folder in (folder for folder, inside in folders.items() if len(inside) >= _LISTED):
        try:
            found.update((one.url, one) for one in listing(folder, options))
        except RemoteError as error:
            if error.status not in (401, 403):  # one may be allowed to read and not to list
                raise
    rest = [url for url in urls if url not in found]
    with ThreadPoolExecutor(max(1, min(_THREADS, len(rest)))) as pool:
        found.update((one.url, one) for one in pool.map(lambda url: look(url, options), rest))
    return [found[url] for url in urls]


def listing(folder: str, options: RemoteOptions) -> list[Remote]:
    """The ``.tar`` files right in a folder (an address that ends in ``/``), by name. Of a web server: those that its page links to.

    Raises:
        RemoteError: the folder cannot be listed.
        DataError: it holds none.
    """
    entries = _call(folder, lambda fs: fs.ls(folder, detail=True), options)
    wanted = [entry for entry in entries if urlsplit(str(entry["name"])).path.endswith(".tar")]
    if not wanted:
        raise DataError(f"data: {shown(folder)} holds no .tar file; a shard folder holds NNNNN.tar files")
    if kind(folder) == "http":
        return look_all(sorted(entry["name"] for entry in wanted), options)
    scheme = folder.partition("://")[0]
    made = [_remote(f"{scheme}://{str(entry['name']).partition('://')[2] or entry['name']}", entry) for entry in wanted]
    return sorted(made, key=lambda one: one.url)


def check_unchanged(remote: Remote, options: RemoteOptions) -> None:
    """That a shard is still the one that the run started with.

    Raises:
        Replaced: size, ETag or time differ.
        RemoteError: it is gone.
    """
    now = look(remote.url, options)
    if (now.size, now.tag) != (remote.size, remote.tag):
        raise Replaced(
            f"{remote}: the shard was replaced on the server during the run (it was {_version(remote)}, it is {_version(now)}); "
            "put the old one back, or start a new run with the new data"
        )


def _version(remote: Remote) -> str:
    return f"{remote.size if remote.size is not None else 'unknown'} bytes, {remote.tag or 'no ETag'}"


# ---------------------------------------------------------------- bytes
def read_range(remote: Remote, start: int, stop: int, options: RemoteOptions) -> bytes:
    """Bytes ``start`` to ``stop`` of a shard.

    Raises:
        NoRanges: the server sends whole files only.
        RemoteError: they cannot be read.
    """

    def action(fs: Any) -> bytes:
        if kind(remote.url) == "http":  # its cat_file would take the whole file for the range
            with fs.open(remote.url, size=remote.size, block_size=1, cache_type="none") as file:
                file.seek(start)
                data = file.read(stop - start)
        else:
            data = fs.cat_file(remote.url, start=start, end=stop)
        if len(data) != stop - start:
            raise Incomplete(f"{len(data)} of {stop - start} bytes came")
        return data

    if remote.is_command or remote.size is None:
        raise NoRanges(f"{remote} cannot be read by ranges")
    try:
        return _call(remote.url, action, options)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise NoRanges(f"{remote}: the server sends whole files only") from None


def read_all(url: str, most: int, options: RemoteOptions) -> bytes | None:
    """A small file beside the shards; None where there is none, it may not be read, or it is longer than ``most`` bytes.

    Raises:
        RemoteError: the server fails.
    """
    try:
        info = _call(url, lambda fs: fs.info(url), options, lasting=1)
        if info.get("size") is None or info["size"] > most:
            return None
        return _call(url, lambda fs: fs.cat_file(url), options, lasting=1)
    except RemoteError as error:
        if error.status in LASTING:
            return None
        raise


def download(remote: Remote, target: Path, told: Callable[[int], None], options: RemoteOptions) -> None:
    """A whole shard into a file that may be overwritten; ``told`` hears of bytes as they come. The bytes are on the disk at the end.

    Raises:
        Replaced: it is no longer the shard that the run started with.
        RemoteError: it cannot be read.
        DiskFull: no room for it.
    """
    from fsspec.callbacks import Callback

    class Told(Callback):
        done = 0

        def relative_update(self, inc: int = 1) -> None:
            self.done += inc
            told(inc)

    callback = Told()

    def action(fs: Any) -> None:
        callback.relative_update(-callback.done)  # of the try before
        fs.get_file(remote.url, str(target), callback=callback)
        if remote.size is not None and target.stat().st_size != remote.size:
            check_unchanged(remote, options)
            raise Incomplete(f"{target.stat().st_size} of {remote.size} bytes came")
        with open(target, "rb+") as file:
            os.fsync(file.fileno())  # a full disk may say so only here

    _call(remote.url, action, options)
    check_unchanged(remote, options)
