"""The list of records on disk between reading the annotations and writing the shards.

``records.jsonl`` has one record a line; ``order.npy`` the offset of each in the order of the shards (shuffled or not); ``head.json``,
written last, says that the list is whole and what it was made from. A killed build finds it and reads no annotation twice; the processes
that write shards read their part of it; its size does not matter to anyone's memory.
"""

from __future__ import annotations

import hashlib
import io
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmpretrain.data.cache import write_atomic
from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import Record, Skip

_REPORT = 1000  # records between two reports


def fill(
    folder: Path,
    request: Any,
    records: Iterable[Record | Skip],
    shuffle: int | None = None,
    limit: int | None = None,
    report: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Write the list; returns its head: ``{"request", "records", "sha256"}``.

    Args:
        folder: existing, of this build alone.
        request: what the list is made from (JSON); another request is another list.
        records: of a format.
        shuffle: seed of the order of the samples; None keeps the order of the source.
        limit: at most so many records.
        report: called now and then with the number of records.

    Raises:
        DataError: two records with one key.
    """
    offsets, keys, at, digest = array("Q"), array("Q"), 0, hashlib.sha256()
    with open(folder / "records.jsonl", "wb") as file, open(folder / "skipped.jsonl", "wb") as left_out:
        for found in records:
            if limit is not None and len(offsets) >= limit:
                break
            if isinstance(found, Skip):
                left_out.write(line_of(found))
                continue
            line = _line(found)
            if isinstance(line, Skip):
                left_out.write(line_of(line))
                continue
            keys.append(int.from_bytes(hashlib.blake2b(found.key.encode(), digest_size=8).digest(), "little"))
            offsets.append(at)
            at += file.write(line)
            digest.update(line)
            if len(offsets) % _REPORT == 0:
                report(len(offsets))
    _refuse_twins(folder, np.frombuffer(keys, dtype=np.uint64))
    order = np.frombuffer(offsets, dtype=np.uint64)[_permutation(len(offsets), shuffle)]
    buffer = io.BytesIO()
    np.save(buffer, order)
    write_atomic(folder / "order.npy", buffer.getvalue())
    digest.update(order.tobytes())
    head = {"request": request, "records": len(order), "sha256": digest.hexdigest()}
    write_atomic(folder / "head.json", json.dumps(head).encode())
    report(len(order))
    return head


def kept(folder: Path, request: Any) -> dict[str, Any] | None:
    """The head of a whole list made from the same request; None where there is none."""
    try:
        head = json.loads((folder / "head.json").read_text(encoding="utf-8"))
        return head if head["request"] == json.loads(json.dumps(request)) and head["records"] >= 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read(folder: Path, start: int, stop: int) -> Iterator[Record]:
    """Records ``start`` to ``stop - 1`` in the order of the shards."""
    order = np.load(folder / "order.npy", mmap_mode="r", allow_pickle=False)[start:stop]
    with open(folder / "records.jsonl", "rb") as file:
        for offset in order.tolist():
            file.seek(offset)
            key, pictures, captions, meta = json.loads(file.readline())
            yield Record(key, tuple(pictures), tuple(captions), meta)


def line_of(skip: Skip) -> bytes:
    """A line of ``skipped.jsonl``."""
    fields = {name: value for name, value in skip._asdict().items() if value}
    return json.dumps(fields).encode() + b"\n"


def _line(record: Record) -> bytes | Skip:
    try:
        return json.dumps([record.key, record.pictures, record.captions, record.meta], allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        return Skip(record.key, "annotations are not JSON", str(error))


def _permutation(count: int, seed: int | None) -> Any:
    """Indices of ``count`` records; shuffled by 64 random bits each, the same on every machine and with every version of numpy."""
    if seed is None:
        return slice(None)
    import torch

    from mmpretrain.random import bits, key_of, stream

    drawn = bits(torch.arange(count, dtype=torch.int64) ^ key_of(seed), stream("data build/shuffle"), 1)
    return np.argsort(drawn[:, 0].numpy(), kind="stable")


def _refuse_twins(folder: Path, keys: np.ndarray) -> None:
    found, counts = np.unique(keys, return_counts=True)
    twins = set(found[counts > 1].tolist())
    if not twins:
        return
    with open(folder / "records.jsonl", "rb") as file:
        for number, line in enumerate(file):
            if int(keys[number]) in twins:
                key = json.loads(line)[0]
                raise DataError(f"{len(twins)} keys come twice, first {key!r}: each sample needs a name of its own; rename or build apart")
