"""``manifest.json`` beside shards, as far as it helps to see damage: a list ``shards`` of ``{"file", "bytes", "sha256"}``."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

FILE = "manifest.json"


def entries(data: bytes | None) -> dict[str, dict[str, Any]]:
    """Name of a shard -> its entry; empty where there is no manifest of this form."""
    try:
        return {str(entry["file"]): dict(entry) for entry in json.loads(data or b"{}")["shards"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def beside(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of the manifest in the folder of a shard."""
    found = path.with_name(FILE)
    try:
        return _read(found, found.stat().st_mtime_ns)
    except OSError:
        return {}


@functools.lru_cache(4)
def _read(path: Path, written: int) -> dict[str, dict[str, Any]]:
    return entries(path.read_bytes())


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
