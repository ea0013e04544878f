"""The offset index of a shard: where every member of every sample lies, its checksum, what a sample has, and the sizes of that.

Made automatically in one pass over the tar, kept as ``SHARD.tar.idx.npz`` beside it (in the cache folder where that cannot be written), and
mapped into memory when read. Making it is the check of a shard: all damage that a tar can show is an error here, never a silently shorter
epoch. Key rule (as webdataset's): the folder and the name up to its first dot; the rest, in lower case, says what the member is.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmpretrain.data import manifest
from mmpretrain.data.cache import cache_root, locked, writable, write_atomic
from mmpretrain.data.errors import DataError
from mmpretrain.data.index_build import ARRAYS, ShardIndex, build
from mmpretrain.data.mapped import map_npz

VERSION = 4  # of the file
_SHOW_PROGRESS = 256 << 20  # bytes to index
_COPY = "copy the shard again, or, if it was changed on purpose, "


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [VERSION, stat.st_size, stat.st_mtime_ns]


def index_path(path: Path) -> Path:
    """Where the index of a shard is written: beside it if that folder can be written, else in the cache."""
    if writable(path.parent):
        return path.with_name(path.name + ".idx.npz")
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return cache_root() / "index" / f"{name}-{path.name}.idx.npz"


def save(index: ShardIndex, target: Path) -> None:
    """Write an index so that no reader ever sees a part of it."""
    rest = {name: getattr(index, name) for name in ("extensions", "tar_size", "digest", "ignored", "problems", "bad")}
    head = json.dumps({**rest, "stamp": _stamp(index.path)}).encode("utf-8")
    buffer = io.BytesIO()
    np.savez(buffer, head=np.frombuffer(head, dtype=np.uint8), **{name: getattr(index, name) for name in ARRAYS})
    write_atomic(target, buffer.getvalue())


def load(path: Path, target: Path) -> ShardIndex | None:
    """The saved index of ``path``; None where there is none, it is damaged, of another version, or older than the shard."""
    try:
        stamp, index = parse(path, target)
        return index if stamp == _stamp(path) else None
    except (OSError, ValueError):
        return None


def parse(path: Path, target: Path) -> tuple[list[int], ShardIndex]:
    """(version, size and time of the shard that it was made of; the index), whatever lies at ``path`` now.

    Raises:
        OSError: no such file.
        ValueError: not an index, or one of whose bytes any is not as it was written.
    """
    arrays = map_npz(target)
    try:
        head: dict[str, Any] = json.loads(bytes(arrays["head"]).decode("utf-8"))
        fields: list[Any] = [path, *(arrays[name] for name in ARRAYS), tuple(head["extensions"]), head["tar_size"], head["digest"]]
        fields += [head["ignored"], tuple(head["problems"]), head["bad"]]
        return list(head["stamp"]), ShardIndex(*fields)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{target}: not an index ({type(error).__name__}: {error})") from None


def remake(path: Path, target: Path) -> ShardIndex:
    """The index of a shard made anew, in the place of what lies at ``target``.

    Damage that the tar itself cannot show is found here while something still knows the right bytes: an earlier index (a copied shard is
    newer than the index that was copied with it) or the ``manifest.json`` beside the shard.

    Raises:
        DataError: see :func:`build`; or bytes that differ from the earlier index or from the manifest.
    """
    made = build(path)
    try:
        stamp, old = parse(path, target)
    except (OSError, ValueError):
        pass
    else:
        _compare(made, old, stamp)
    expected = manifest.beside(path).get(path.name, {}).get("sha256")
    if expected is not None and manifest.sha256(path) != expected:  # its bytes have just been read
        raise DataError(f"{path}: its sha256 is not that of its manifest.json; {_COPY}mend or remove the manifest")
    return made


def _compare(made: ShardIndex, old: ShardIndex, stamp: list[int]) -> None:
    """Refuse members that lie where they lay, with other bytes; a shard that was written anew has others, or elsewhere."""
    same = ("keys", "key_ends_S", "first_member", "offsets_M", "sizes_M", "extensions_M")
    if stamp[0] != VERSION or made.tar_size != old.tar_size or made.extensions != old.extensions:
        return
    if not all(np.array_equal(getattr(made, name), getattr(old, name)) for name in same):
        return
    changed = np.flatnonzero(np.asarray(made.crcs_M) != np.asarray(old.crcs_M))
    if not len(changed):
        return
    sample = int(np.searchsorted(made.first_member, changed[0], side="right")) - 1
    name, offset, *_ = made.members(sample)[int(changed[0]) - int(made.first_member[sample])]
    more = f", and those of {len(changed) - 1} more members" if len(changed) > 1 else ""
    raise DataError(
        f"{made.path} key {made.key(sample)!r}: the bytes of {name} at offset {offset} changed since the shard was indexed{more}; {_COPY}"
        f"run mmpretrain data index --refresh {made.path}"
    )


def open_index(path: Path) -> ShardIndex:
    """The index of a shard: the saved one where it is fresh, else made and saved.

    Raises:
        DataError: see :func:`remake`.
    """
    target = index_path(path)
    if (found := load(path, target)) is not None:
        return found
    with locked(str(path.resolve())):
        if (found := load(path, target)) is not None:  # another process made it meanwhile
            return found
        made = remake(path, target)
        try:
            save(made, target)
        except OSError:
            return made  # nowhere to keep it: it is made again next time
        return load(path, target) or made


def open_indexes(paths: Sequence[Path], threads: int = 4) -> list[ShardIndex]:
    """The indexes of many shards, with a progress bar where much has to be read.

    Raises:
        DataError: see :func:`build`; or no sample in any of them.
    """
    missing = sum(path.stat().st_size for path in paths if not index_path(path).exists())
    with ThreadPoolExecutor(max(1, min(threads, len(paths)))) as pool:
        found: Iterable[ShardIndex] = pool.map(open_index, paths)
        if missing > _SHOW_PROGRESS:
            from rich.progress import track

            found = track(found, f"Indexing {len(paths)} shards", total=len(paths))
        indexes = list(found)
    if not sum(len(index) for index in indexes):
        raise DataError(f"data: no sample in {paths[0]}" + (f" and {len(paths) - 1} more shards" if len(paths) > 1 else ""))
    return indexes


def fingerprint(indexes: Sequence[ShardIndex]) -> str:
    """sha256 over the contents of the shards in their order; where they lie does not matter."""
    return hashlib.sha256("\n".join(index.digest for index in indexes).encode()).hexdigest()
