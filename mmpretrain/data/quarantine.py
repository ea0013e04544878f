"""Samples that are not to be used: ``quarantine.jsonl`` beside the shards, one line for each.

    {"shard": "00012.tar", "key": "k00815", "reason": "picture cannot be decoded"}

``shard`` is the name of the file, ``key`` that of the sample. The samples stay in their shard; training leaves them out of its order.
A command that writes lines puts its name into ``tool``, and replaces its own lines only.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmpretrain.data.cache import locked, write_atomic
from mmpretrain.data.errors import DataError
from mmpretrain.data.reader import ShardReader

FILE = "quarantine.jsonl"


class Quarantine(NamedTuple):
    """The listed samples of some shards."""

    samples: dict[int, np.ndarray]  # shard -> numbers of samples, int64, ascending
    reasons: Counter[str]
    digest: str  # of what is left out; "" where nothing is


def read(path: Path) -> list[dict[str, str]]:
    """The entries of a list.

    Raises:
        DataError: a line that is no such entry, naming it.
    """
    return parse(path.read_bytes(), str(path))


def parse(data: bytes, path: str) -> list[dict[str, str]]:
    """The entries of the bytes of a list that lies at ``path``.

    Raises:
        DataError: a line that is no such entry, naming it.
    """
    found = []
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}); mend or remove the file") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); mend or remove the line") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("shard"), str) or not isinstance(entry.get("key"), str):
            raise DataError(f"{path}, line {number}: an entry needs the texts shard and key; mend or remove the line")
        found.append({name: str(entry.get(name, "")) for name in ("shard", "key", "reason", "tool")})
    return found


def replace(path: Path, tool: str, rows: Iterable[Mapping[str, Any]], shards: Collection[str]) -> None:
    """Put ``rows``, with their ``tool``, in the place of those that the same tool wrote earlier of the same shards. All other lines, of
    other tools or made by hand, stay byte by byte, also those that cannot be read."""
    with locked(str(path.resolve())):
        old = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        kept = [line if line.endswith(b"\n") else line + b"\n" for line in old if not _written_by(line, tool, shards)]
        fresh = [json.dumps({**row, "tool": tool}, ensure_ascii=False).encode("utf-8") + b"\n" for row in rows]
        write_atomic(path, b"".join([*kept, *fresh]))


def _written_by(line: bytes, tool: str, shards: Collection[str]) -> bool:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and entry.get("tool") == tool and entry.get("shard") in shards


def entries(reader: ShardReader) -> dict[tuple[int, int], dict[str, str]]:
    """The entries of the lists beside the shards of a reader, by shard and number of the sample. A line for a shard or a key that is not
    there has no effect.

    Raises:
        DataError: a list that cannot be read.
    """
    folders: dict[Path | str, dict[str, dict[str, dict[str, str]]]] = {}
    found = {}
    for shard, index in enumerate(reader.indexes):
        place = reader.paths[shard]
        folder = place.parent
        if folder not in folders:
            wanted: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
            for entry in parse(reader.beside(shard, FILE) or b"", f"{folder}/{FILE}"):
                wanted[entry["shard"]][entry["key"]] = entry
            folders[folder] = dict(wanted)
        if listed := folders[folder].get(place.name):
            found.update({(shard, number): listed[index.key(number)] for number in range(len(index)) if index.key(number) in listed})
    return found


def of(reader: ShardReader) -> Quarantine:
    """What the lists beside the shards of a reader leave out.

    Raises:
        DataError: a list that cannot be read.
    """
    found = entries(reader)
    reasons = Counter(entry["reason"] or "no reason given" for entry in found.values())
    digest = hashlib.sha256()
    numbers: dict[int, list[int]] = defaultdict(list)
    for shard, number in found:
        numbers[shard].append(number)
    for shard, listed in numbers.items():
        digest.update(json.dumps([reader.indexes[shard].digest, listed]).encode())
    samples = {shard: np.asarray(listed, dtype=np.int64) for shard, listed in numbers.items()}
    return Quarantine(samples, reasons, digest.hexdigest() if samples else "")
