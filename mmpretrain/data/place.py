"""A shard that lies elsewhere: its address, its version, and the names under which people and the cache know it."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from mmpretrain.data.redact import redact

SCHEMES = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # to fsspec's name
_ASIDE = re.compile(r"(?i)(?:x-(?:amz|goog)-.*|signature|expires|awsaccesskeyid|googleaccessid|key-pair-id|policy|sig|se|token)=.*")


class Remote(NamedTuple):
    """A shard that lies elsewhere, as it was when the run started. Printed without credentials.

    ``size`` is None where the server does not say; ``tag`` is the ETag, else the hash or the time that the server tells, else empty.
    """

    url: str
    size: int | None = None
    tag: str = ""

    def __str__(self) -> str:
        return shown(self.url)

    def __repr__(self) -> str:
        return f"Remote({shown(self.url)!r}, size={self.size}, tag={self.tag!r})"

    @property
    def is_command(self) -> bool:
        """Whether its bytes are what a command writes."""
        return self.url.startswith("pipe:")

    @property
    def name(self) -> str:
        """The base name, made of letters, digits, dot, dash and underscore."""
        last = "pipe.tar" if self.is_command else unquote(urlsplit(self.url).path).rpartition("/")[2]
        return re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".")[-80:] or "shard.tar"

    @property
    def parent(self) -> str:
        """The folder, as messages name it."""
        return str(self).rpartition("/")[0] or str(self)

    @property
    def cached(self) -> str:
        """The name of its copy: 16 hex digits of the sha256 of address and version, then the base name. Two shards never share one."""
        identity = "\n".join((self.url if self.is_command else _lasting(self.url), self.tag, str(self.size)))
        return f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{self.name}"


def shown(url: str) -> str:
    """How messages name an address: without credentials, a command by its program alone."""
    if url.startswith("pipe:"):
        words = url.removeprefix("pipe:").split()
        return f"pipe:{redact(words[0]) if words else ''}" + (" ..." if len(words) > 1 else "")
    return redact(url)


def _lasting(url: str) -> str:
    """An address without what changes from day to day: user, password, signatures."""
    parts = urlsplit(url)
    query = "&".join(part for part in parts.query.split("&") if not _ASIDE.fullmatch(part))
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def beside(url: str, name: str) -> str:
    """The address of another file in the folder of a shard."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rpartition('/')[0]}/{name}"))


def kind(url: str) -> str:
    """fsspec's name of the file system of an address, ``pipe`` for a command."""
    return SCHEMES.get(url.partition(":")[0].lower(), "pipe")
