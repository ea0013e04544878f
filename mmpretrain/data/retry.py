"""Trying again where a server or the way to it fails for a moment, with growing pauses, a deadline, and a message that says all of it."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from mmpretrain.data.cache import FULL
from mmpretrain.data.errors import DataError
from mmpretrain.data.redact import redact

T = TypeVar("T")
_FIRST, _LONGEST = 0.5, 30.0  # seconds: the first pause, doubled each time, and the longest
LASTING = (400, 401, 403, 404, 405, 410)
_STATUS = {"ClientResponseError": "status", "HttpError": "code"}  # of aiohttp and gcsfs; other errors of theirs say 400 for a cut
_REMEDIES = {
    401: "check the credentials",
    403: "check the credentials and the right to read it",
    404: "check the address; that of a folder ends in '/'",
    410: "it was deleted",
    429: "the server asks for fewer requests; lower data.workers or try again later",
}


@dataclass(frozen=True)
class RemoteOptions:
    """How shards that lie elsewhere are read.

    Args:
        mode: ``cache`` fetches whole shards into the cache of this machine; ``ranges`` reads one sample at a time and keeps nothing.
        cache_gb: most gigabytes (10^9 bytes) of shards in the cache; the longest unused go first.
        tries: how often a request is made before it is an error.
        deadline: seconds after the first try in which another one may start.
        timeout: seconds without a byte after which a connection is given up.
    """

    mode: Literal["cache", "ranges"] = "cache"
    cache_gb: float = 100.0
    tries: int = 8
    deadline: float = 240.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.mode not in ("cache", "ranges"):
            raise DataError(f"data.remote.mode={self.mode!r} must be cache or ranges")
        if self.cache_gb <= 0 or self.tries < 1 or self.deadline < 0 or self.timeout <= 0:
            raise DataError("data.remote: cache_gb and timeout must be above 0, tries at least 1, deadline at least 0")


class RemoteError(DataError):
    """A place cannot be read. ``status`` is that of HTTP, None where no answer came."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class DiskFull(OSError):
    """What is fetched finds no room."""


def retried(action: Callable[[], T], place: str, errors: tuple[type[Exception], ...], options: RemoteOptions, lasting: int = 3) -> T:
    """What ``action`` returns, at the first try that does not fail with one of ``errors``.

    Args:
        place: how messages name what is read; without credentials.
        lasting: most tries where the answer is that it is not there or not allowed, which rarely passes.

    Raises:
        RemoteError: no try succeeded. Names place, status, number of tries and remedy.
        DiskFull: the local disk is full: another try would not help.
    """
    began, tried = time.monotonic(), 0
    while True:
        tried += 1
        try:
            return action()
        except errors as error:
            if (number := getattr(error, "errno", None)) in FULL:
                raise DiskFull(number, redact(str(error))) from None
            code, reason = status(error), why(error)
        spent, wait = time.monotonic() - began, pause(place, tried)
        if tried >= (min(lasting, options.tries) if code in LASTING else options.tries) or spent + wait > options.deadline:
            what = f"HTTP {code}" if code else reason
            other = "the server fails; try again later" if (code or 0) >= 500 else "check the network and the address"
            remedy = _REMEDIES.get(code or 0, other)
            raise RemoteError(f"{place}: {what} after {tried} {'try' if tried == 1 else 'tries'} in {spent:.0f} s; {remedy}", code)
        time.sleep(wait)


def pause(place: str, tried: int) -> float:
    """Seconds to wait after try ``tried``: doubled each time, times 0.5 to 1.5 by a hash of place and machine, so that machines part."""
    digest = hashlib.sha256(f"{socket.gethostname()} {place} {tried}".encode()).digest()
    return min(_LONGEST, _FIRST * 2 ** (tried - 1)) * (0.5 + int.from_bytes(digest[:4], "big") / 2**32)


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    for _ in range(8):
        if one is None:
            return
        yield one
        one = one.__cause__


def status(error: BaseException) -> int | None:
    """The HTTP status behind an error of fsspec, aiohttp, botocore or gcsfs; None where no answer came."""
    for one in _chain(error):
        response = getattr(one, "response", None)  # botocore
        if isinstance(response, dict) and (code := response.get("ResponseMetadata", {}).get("HTTPStatusCode")):
            return int(code)
        code = getattr(one, _STATUS.get(type(one).__name__, ""), None)
        if isinstance(code, int | str) and str(code).isdigit() and int(code) >= 400:
            return int(code)
    if error.__cause__ is None and isinstance(error, FileNotFoundError | PermissionError):
        return 404 if isinstance(error, FileNotFoundError) else 403
    return None


def why(error: BaseException) -> str:
    """The innermost reason of an error, on one line and without credentials."""
    if any(type(one).__name__ == "ClientPayloadError" for one in _chain(error)):  # of aiohttp
        return "the connection was cut before the end"
    last = list(_chain(error))[-1]
    text = " ".join(redact(str(last)).split())
    return f"{text[:200]} ({type(last).__name__})" if text else type(last).__name__
