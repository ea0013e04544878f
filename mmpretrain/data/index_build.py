"""Making the index of a shard: one pass over the tar, in which all damage that a tar can show is an error. See ``index.py``."""

from __future__ import annotations

import hashlib
import json
import mmap
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmpretrain.data import shapes, tar
from mmpretrain.data.decode import IMAGE, allowed, assemble, limit, questions
from mmpretrain.data.errors import BadSample, DataError

_DIGESTED = 1  # what the digest covers: fingerprints outlive added columns
_MOST = 65535  # texts, pictures, regions, bytes of a text that the columns can say
_PROBLEMS_KEPT = 20


class ShardIndex(NamedTuple):
    """The index of one shard with S samples and M members. Arrays may be mapped from a file."""

    path: Path
    keys: np.ndarray  # uint8: the UTF-8 keys one after another
    key_ends_S: np.ndarray  # int64
    first_member: np.ndarray  # int64 (S + 1,)
    offsets_M: np.ndarray  # int64, of the bytes of a member
    sizes_M: np.ndarray  # int64
    crcs_M: np.ndarray  # uint32
    extensions_M: np.ndarray  # uint16, into ``extensions``
    captions_S: np.ndarray  # uint16; 0 where the texts cannot be read
    statements_S: np.ndarray  # uint16
    images_S: np.ndarray  # uint16
    regions_S: np.ndarray  # uint16: regions of the sample; 0 where it has none, or they cannot be read
    questions_S: np.ndarray  # uint16
    heights_S: np.ndarray  # uint32: of the picture, upright, several side by side; 0 where there is none, or its header cannot be read
    widths_S: np.ndarray  # uint32
    caption_bytes_C: np.ndarray  # uint16: bytes of each caption of each sample, one sample after another
    statement_bytes_C: np.ndarray  # uint16
    question_bytes_C: np.ndarray  # uint16
    code_rows_S: np.ndarray  # uint16: grid of the image codes of the sample; 0 where it has none, or their header cannot be read
    code_columns_S: np.ndarray  # uint16
    extensions: tuple[str, ...]
    tar_size: int
    digest: str  # sha256 of the keys, the members and the counts of texts and pictures
    ignored: dict[str, int]  # extension -> members that are never read
    problems: tuple[str, ...]  # the first of the samples whose texts cannot be used, with the reason
    bad: int  # how many such samples

    def __len__(self) -> int:
        return len(self.key_ends_S)

    def key(self, sample: int) -> str:
        start = int(self.key_ends_S[sample - 1]) if sample else 0
        return bytes(self.keys[start : int(self.key_ends_S[sample])]).decode("utf-8")

    def members(self, sample: int) -> list[tuple[str, int, int, int]]:
        """(extension, offset, size, crc32) of each allowed member."""
        first, last = int(self.first_member[sample]), int(self.first_member[sample + 1])
        return [
            (self.extensions[self.extensions_M[m]], int(self.offsets_M[m]), int(self.sizes_M[m]), int(self.crcs_M[m]))
            for m in range(first, last)
        ]


ARRAYS = tuple(ShardIndex._fields[1:20])
_IDENTITY = 10  # arrays that the digest covers: the shapes follow from them


class _Entry(NamedTuple):
    """A member of the sample that is being collected."""

    member: tar.Member
    data: bytes | None  # of texts, regions and codes
    crc: int
    size: tuple[int, int] | None  # height and width of a picture


class _Builder:
    """Collects what :func:`build` sees."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: list[bytes] = []
        self.seen: set[str] = set()
        self.rows: list[tuple[int, int, int, str]] = []  # offset, size, crc, extension
        self.first = [0]
        self.counts: list[tuple[int, ...]] = []  # captions, statements, pictures, regions, questions
        self.sizes: list[tuple[int, int]] = []
        self.grids: list[tuple[int, int]] = []
        self.texts: tuple[list[int], ...] = ([], [], [])  # bytes of captions, of statements and of questions
        self.ignored: Counter[str] = Counter()
        self.problems: list[str] = []
        self.bad = 0

    def close(self, key: str, group: dict[str, _Entry]) -> None:
        """End the sample ``key``: check it, count its texts and pictures."""
        if key in self.seen:
            other = next(iter(group.values())).member
            raise DataError(
                f"{self.path}: the members of key {key!r} are not adjacent (again at offset {other.header}); write the shard again"
            )
        self.seen.add(key)
        readable = {name: entry for name, entry in group.items() if allowed(name)}
        hidden = [name for name in group if not allowed(name) and any(allowed(name[at + 1 :]) for at, c in enumerate(name) if c == ".")]
        if not readable and hidden:
            raise DataError(
                f"{self.path}: key {key!r} has no readable member but {hidden[0]!r}: a key must not hold a dot; rename the members"
            )
        self.ignored.update(name for name in group if name not in readable)
        if not readable:
            return
        self.keys.append(key.encode("utf-8"))
        self.rows.extend((entry.member.offset, entry.member.size, entry.crc, name) for name, entry in readable.items())
        self.first.append(len(self.rows))
        try:
            for name, entry in readable.items():
                if (most := limit(name)) is not None and entry.member.size > most:
                    raise BadSample(f"{name} of {entry.member.size} bytes is longer than {most}")
            sample = assemble(key, {name: entry.data for name, entry in readable.items()})
            asked = [one["question"] for one in questions(sample.meta)]
            texts = [sample.captions, [one.text for one in sample.statements], asked]
            for kept, found in zip(self.texts, texts, strict=True):
                kept.extend(len(text.encode("utf-8")) for text in found[:_MOST])
            counts = (len(sample.captions), len(sample.statements), len(sample.images), shapes.regions(sample.regions), len(asked))
            self.counts.append(counts)
            self.sizes.append(shapes.joined([entry.size for entry in readable.values() if entry.size is not None]))
            self.grids.append(shapes.codes(sample.codes))
        except BadSample as error:
            self.bad += 1
            if len(self.problems) < _PROBLEMS_KEPT:
                self.problems.append(f"{key}: {error}")
            self.counts.append((0, 0, 0, 0, 0))
            self.sizes.append((0, 0))
            self.grids.append((0, 0))

    def finish(self, tar_size: int) -> ShardIndex:
        names = sorted({row[3] for row in self.rows})
        code = {name: number for number, name in enumerate(names)}
        rows, counts = self.rows, np.minimum(np.asarray(self.counts, dtype=np.int64).reshape(-1, 5), _MOST).astype(np.uint16)
        sizes = np.asarray(self.sizes, dtype=np.uint32).reshape(-1, 2)
        grids = np.asarray(self.grids, dtype=np.uint16).reshape(-1, 2)
        arrays: tuple[np.ndarray, ...] = (
            np.frombuffer(b"".join(self.keys), dtype=np.uint8),
            np.cumsum([len(key) for key in self.keys], dtype=np.int64),
            np.asarray(self.first, dtype=np.int64),
            np.asarray([row[0] for row in rows], dtype=np.int64),
            np.asarray([row[1] for row in rows], dtype=np.int64),
            np.asarray([row[2] for row in rows], dtype=np.uint32),
            np.asarray([code[row[3]] for row in rows], dtype=np.uint16),
            *(np.ascontiguousarray(counts[:, column]) for column in range(5)),
            *(np.ascontiguousarray(sizes[:, column]) for column in range(2)),
            *(np.minimum(np.asarray(texts, dtype=np.int64), _MOST).astype(np.uint16) for texts in self.texts),
            *(np.ascontiguousarray(grids[:, column]) for column in range(2)),
        )
        digest = hashlib.sha256(json.dumps([_DIGESTED, tar_size, names]).encode())
        for array in arrays[:_IDENTITY]:
            digest.update(array.tobytes())
        fields: list[Any] = [self.path, *arrays, tuple(names), tar_size, digest.hexdigest()]
        fields += [dict(self.ignored), tuple(self.problems), self.bad]
        return ShardIndex(*fields)


def build(path: Path) -> ShardIndex:
    """Read a whole shard and index it.

    Raises:
        DataError: the archive is damaged, a member stands twice, the members of a key are not adjacent, or a key breaks the rule.
    """
    made = _Builder(path)
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path}: the file is empty; write the shard again")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        current: str | None = None
        group: dict[str, _Entry] = {}
        for member in tar.members(data, str(path)):
            folder, slash, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            key, extension = folder + slash + stem, extension.lower()
            if not stem or not extension:
                made.ignored[name] += 1
                continue
            if key != current:
                if current is not None:
                    made.close(current, group)
                current, group = key, {}
            if extension in group:
                raise DataError(
                    f"{path}: key {key!r} has two members {extension!r} (the second at offset {member.header}); write the shard again"
                )
            view = memoryview(data)[member.offset : member.offset + member.size]
            crc = zlib.crc32(view) if allowed(extension) else 0
            most = limit(extension)
            content = bytes(view) if most is not None and member.size <= most else None
            picture, kept = None, content
            if IMAGE.fullmatch(extension):
                picture, kept = shapes.picture(content) if content is not None else (0, 0), None
            view.release()
            group[extension] = _Entry(member, kept, crc, picture)
        if current is not None:
            made.close(current, group)
    return made.finish(size)
