"""Reading samples of shards as they lie there, and writing shards: the same samples give the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpretrain.data import tar
from mmpretrain.data.cache import naming, write_atomic
from mmpretrain.data.decode import allowed
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.index import ShardIndex, index_path, open_index

SHARD_SIZE = 1000  # samples of a shard by default
MANIFEST = "manifest.json"
_MODE = 0o644
_TWINS = "make one set of the sources first, mmpretrain data mix A=SOURCE B=SOURCE --out DIR, which puts the names before the keys"


def split_name(name: str) -> tuple[str, str]:
    """(key, extension in lower case) of a member: the folder and the name up to its first dot; the rest."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


def read_samples(path: Path, everything: bool = False) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, extension -> bytes) of each run of members with one key, in the order of the shard; only what the loader reads, or everything.

    Raises:
        DataError: a damaged archive.
    """
    key: str | None = None
    group: dict[str, bytes] = {}
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for member in tar.members(data, str(path)):
            found, extension = split_name(member.name)
            if not (extension if everything else allowed(extension)):
                continue
            if found != key:
                if key is not None:
                    yield key, group
                key, group = found, {}
            group[extension] = data[member.offset : member.offset + member.size]
        if key is not None:
            yield key, group


class RawReader:
    """Members of samples by shard and number, checked against the index. For tools that copy samples from many shards."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.indexes: dict[Path, ShardIndex] = {path: open_index(path) for path in paths}

    def read(self, path: Path, sample: int) -> tuple[str, dict[str, bytes]]:
        """(key, extension -> bytes) of a sample.

        Raises:
            BadSample: naming shard and key, where the bytes differ from the index.
        """
        index = self.indexes[path]
        members = {}
        with open(path, "rb") as file:
            for name, offset, size, crc in index.members(sample):
                members[name] = os.pread(file.fileno(), size, offset)
                if zlib.crc32(members[name]) != crc:
                    raise BadSample.of(path, index.key(sample), f"the bytes of {name} changed since the shard was indexed")
        return index.key(sample), members


def write_shard(target: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> dict[str, Any]:
    """Write a shard by webdataset's ``TarWriter``: times 0, no owner, members of a sample in the order of their extensions.

    The file appears complete or not at all.

    Returns:
        what a manifest says of it: file, samples, bytes, sha256.

    Raises:
        DataError: two samples with one key, which no reader could tell apart.
    """
    from webdataset import TarWriter

    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    keys: set[str] = set()
    try:
        with naming(target), os.fdopen(descriptor, "wb") as file:
            with TarWriter(file, user="", group="", mode=_MODE, mtime=0, encoder=False) as writer:
                for key, members in samples:
                    if key in keys:
                        raise DataError(f"{target}: two samples have the key {key!r}; {_TWINS}")
                    keys.add(key)
                    writer.write({"__key__": key, **members})
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, _MODE)
        index_path(target).unlink(missing_ok=True)  # of another shard that lay there
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    return {"file": target.name, "samples": len(keys), "bytes": target.stat().st_size, "sha256": sha256(target)}


def sha256(path: Path) -> str:
    """The sum of a file, as manifests write it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, shards: Sequence[Mapping[str, Any]], made: Mapping[str, Any], name: str | None = None) -> Path:
    """``manifest.json`` of a folder: its name, samples, how it was made, and file, samples, bytes and sha256 of each shard.

    Args:
        shards: what :func:`write_shard` returned, in order.
        made: tool and options, for people.
        name: of the set; the folder's by default.
    """
    whole = {"name": name or folder.name, "samples": sum(one["samples"] for one in shards), "made": dict(made), "shards": list(shards)}
    text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / MANIFEST, text.encode("utf-8", "backslashreplace"))  # names of files need not be UTF-8: JSON has them as \udcXX
    return folder / MANIFEST


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None where there is none.

    Raises:
        DataError: it cannot be read.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(isinstance(one["file"], str) for one in found["shards"]):
            raise ValueError("not a list of shards")
        return found
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a manifest ({error}); remove it or write it again") from None


def fresh_folder(out: Path, state: str) -> Path:
    """The folder of a tool's output: new, empty, or left by an interrupted run (then it holds the folder ``state``).

    Returns:
        the folder for the engine's records, inside ``out``. Remove it when the output is complete.

    Raises:
        DataError: ``out`` holds something else.
    """
    if out.exists() and not (out / state).is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder: choose another --out or remove it")
    (out / state).mkdir(parents=True, exist_ok=True)
    for left in out.rglob(".*"):  # parts of files that a killed process was writing
        if left.is_file():
            left.unlink(missing_ok=True)
    return out / state
