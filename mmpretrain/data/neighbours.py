"""Texts that are alike, for hard negatives: of every text the most similar ones of other samples (InterBERT, arXiv 2003.13198 section 3.2).

Similarity is the cosine of TF-IDF vectors of words: count times ``ln((1 + n) / (1 + n_with_the_word)) + 1``, function words left out.
InterBERT takes the 30 most similar captions of those below 0.5: above it they may well be true of the picture. Texts are compared within
pools of at most 32,768 (every so-manieth sample), so that time grows with the number of texts and memory does not: a set of several pools
has of each text the most similar ones of its pool.

The table is made once per set, in the cache folder, and mapped into memory. It is a function of the texts alone; with
``data.neighbours.file``, of the vectors of a model (:mod:`mmpretrain.data.neighbour_vectors`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mmpretrain.data import neighbour_vectors
from mmpretrain.data.cache import cache_root, locked
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.function_words import is_function_word
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.told import texts
from mmpretrain.data.units import TEXTS

MOST, BELOW = 30, 0.5
_SHIFT = neighbour_vectors.SHIFT
POOL = 1 << _SHIFT  # most texts that are compared with each other
_VERSION = 1
_ROWS = 256  # texts whose similarities to a pool are held at a time
_BITS = 16  # of a similarity: so that rounding decides nothing, and that it and the number in a pool fit into 31 bits
_SHOW_PROGRESS = 20_000  # texts
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class NeighbourOptions:
    """Which texts are alike, for hard negatives (``itm.ITM``, ``negatives: {hard: 1.0}``).

    Args:
        file: vectors of the training set, ``mmpretrain embed ... --out FILE.npz``: texts are as alike as the cosine of the vectors of their
            samples' first captions; None: as that of their TF-IDF vectors.
        most: neighbours of a text.
        below: only less similar texts are neighbours; None: 0.5 with TF-IDF (InterBERT), no bound with a file.

    Raises:
        DataError: an option out of its range.
    """

    file: str | None = None
    most: int = MOST
    below: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.most <= 1000 or (self.below is not None and not -1 < self.below <= 2):
            raise DataError(f"data.neighbours: most={self.most} must be from 1 to 1000, below={self.below} above -1 and at most 2")


class TextPlace(NamedTuple):
    """Where a text stands."""

    shard: int
    sample: int  # in the shard
    text: int  # among those of the sample


class Neighbours:
    """The table of a set. Texts are numbered through all samples of its shards.

    Args:
        path: of the table.
        reader: of the shards.
        text_from: which texts of a sample are meant, as ``data.text_from``.
    """

    def __init__(self, path: Path, reader: ShardReader, text_from: str) -> None:
        self.path, self.reader, self.text_from = path, reader, text_from
        self.ends = np.cumsum([int(counts(reader, text_from, shard).sum()) for shard in range(len(reader.indexes))], dtype=np.int64)
        self._table: np.ndarray | None = None
        self._shards: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None, "_shards": {}}

    def _ends_of(self, shard: int) -> np.ndarray:
        if shard not in self._shards:
            self._shards = {shard: np.cumsum(counts(self.reader, self.text_from, shard))}
        return self._shards[shard]

    def of(self, place: TextPlace) -> np.ndarray:
        """The numbers of the neighbours of a text, the most similar first: int64, at most ``MOST``."""
        if self._table is None:
            self._table = np.load(self.path, mmap_mode="r")
        ends = self._ends_of(place.shard)
        first = int(self.ends[place.shard - 1] if place.shard else 0) + int(ends[place.sample - 1] if place.sample else 0)
        row = np.asarray(self._table[first + place.text], dtype=np.int64)
        return row[row >= 0]

    def locate(self, number: int) -> TextPlace:
        """Where text ``number`` stands."""
        shard = int(np.searchsorted(self.ends, number, side="right"))
        left = number - int(self.ends[shard - 1] if shard else 0)
        ends = np.cumsum(counts(self.reader, self.text_from, shard))
        sample = int(np.searchsorted(ends, left, side="right"))
        return TextPlace(shard, sample, left - int(ends[sample - 1] if sample else 0))


def counts(reader: ShardReader, text_from: str, shard: int) -> np.ndarray:
    """Texts of each sample of a shard: int64."""
    index = reader.indexes[shard]
    return np.sum([np.asarray(getattr(index, f"{kind}_S"), dtype=np.int64) for kind in TEXTS[text_from]], axis=0)


def make(reader: ShardReader, text_from: str, options: NeighbourOptions = NeighbourOptions(), pool: int = POOL) -> Neighbours:
    """The neighbours of all texts of a set; those found before are taken from the cache.

    Args:
        pool: most texts (with a file: samples) that are compared with each other, up to ``POOL``.

    Raises:
        DataError: the cache folder cannot be written, or the file of vectors is none or of other samples.
    """
    file = None if options.file is None else Path(options.file).expanduser()
    below = options.below if options.below is not None else BELOW if file is None else 2.0
    facts = [_VERSION, reader.fingerprint, text_from, pool, options.most, below]
    facts += [neighbour_vectors.sum_of(file)] if file is not None else []
    target = cache_root() / "neighbours" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.npy"
    with locked(str(target)):
        if not target.is_file():
            try:
                _write(target, reader, text_from, min(pool, POOL), options.most, below, file)
            except OSError as error:
                raise DataError(f"the table of similar texts cannot be written to {target} ({error}); set MMPRETRAIN_CACHE") from None
    return Neighbours(target, reader, text_from)


def _write(target: Path, reader: ShardReader, text_from: str, pool: int, most: int, below: float, file: Path | None) -> None:
    per_sample = np.concatenate([counts(reader, text_from, shard) for shard in range(len(reader.indexes))])
    total, vectors_SD = int(per_sample.sum()), None if file is None else neighbour_vectors.vectors_of(file, reader)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(descriptor)
    try:
        table = np.lib.format.open_memmap(name, mode="w+", dtype=np.int32, shape=(total, most))
        with _progress(total) as told:
            if vectors_SD is not None:
                neighbour_vectors.fill(table, per_sample, vectors_SD, pool, below, told)
            else:
                _fill(table, reader, text_from, per_sample, pool, below, told)
        table.flush()
        del table
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    if total < _SHOW_PROGRESS:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("Looking for similar texts", total=total)
        yield lambda done: progress.advance(task, done)


def _fill(
    table: np.ndarray, reader: ShardReader, text_from: str, per_sample: np.ndarray, pool: int, below: float, told: Callable[[int], None]
) -> None:
    """Every row of the table, -1 where a text has fewer neighbours."""
    firsts, documents = np.cumsum(per_sample) - per_sample, Counter[str]()
    for sample in np.flatnonzero(per_sample).tolist():
        for words in _words(reader, sample, text_from, int(per_sample[sample])):
            documents.update(words.keys())
    weight = {word: float(np.log((1 + len(table)) / (1 + count)) + 1) for word, count in documents.items()}
    most = int(per_sample.max(initial=1))
    if most > POOL:
        raise DataError(f"a sample has {most} texts; similar texts are looked for among samples with at most {POOL}")
    step = -(-len(per_sample) // max(1, pool // most)) if len(table) > pool else 1
    for start in range(step):
        samples = [sample for sample in range(start, len(per_sample), step) if per_sample[sample]]
        bags = [bag for sample in samples for bag in _words(reader, sample, text_from, int(per_sample[sample]))]
        owners = np.repeat(np.asarray(samples, dtype=np.int64), per_sample[samples]) if samples else np.zeros(0, dtype=np.int64)
        numbers = np.concatenate([np.arange(firsts[s], firsts[s] + per_sample[s]) for s in samples]) if samples else owners
        for rows, found in similar(bags, weight, owners, table.shape[1], below):
            table[numbers[rows]] = np.where(found >= 0, numbers[found], -1)
            told(len(rows))


def _words(reader: ShardReader, sample: int, text_from: str, expected: int) -> list[Counter[str]]:
    """The words of each text of a sample with their counts; none for a sample that cannot be read."""
    try:
        found = texts(reader.read_at(*reader.locate(sample), images=False), text_from)
    except BadSample:
        found = []
    bags = [Counter(word for word in _WORD.findall(text.lower()) if not is_function_word(word)) for text in found]
    return (bags + [Counter() for _ in range(expected)])[:expected]


def similar(
    bags: list[Counter[str]], weight: dict[str, float], owners: np.ndarray, most: int, below: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, int64 (rows, most) of their neighbours, the most similar first, -1 where there are fewer), a part of the rows at a time.

    Args:
        bags: words of each text with their counts.
        weight: of each word.
        owners: sample of each text; texts of one sample are no neighbours.
    """
    names: dict[str, int] = {}
    entries = [
        (row, names.setdefault(word, len(names)), count * weight[word]) for row, bag in enumerate(bags) for word, count in bag.items()
    ]
    total = len(bags)
    if not entries:
        if total:
            yield np.arange(total), np.full((total, most), -1, dtype=np.int64)
        return
    row, column, value = (torch.tensor(x) for x in zip(*entries, strict=True))
    value = value.double()
    norm = torch.zeros(total, dtype=torch.float64).index_add_(0, row, value**2).sqrt()
    value = (value / norm[row]).float()
    matrix = torch.sparse_coo_tensor(torch.stack([row, column]), value, (total, len(names)), check_invariants=False).coalesce()
    starts = torch.searchsorted(row, torch.arange(total + 1))
    borders = np.flatnonzero(np.diff(owners, prepend=-1, append=-1))  # texts of one sample stand side by side
    first, last = (np.repeat(x, np.diff(borders)).tolist() for x in (borders[:-1], borders[1:]))
    order, limit = (total - 1 - torch.arange(total)).int(), int(np.ceil(below * (1 << _BITS)))
    for start in range(0, total, _ROWS):
        stop = min(start + _ROWS, total)
        inside = slice(int(starts[start]), int(starts[stop]))
        dense = torch.zeros(len(names), stop - start).index_put_((column[inside], row[inside] - start), value[inside])
        level = torch.sparse.mm(matrix, dense).T.contiguous().mul_(1 << _BITS).round_().int()
        level.masked_fill_(level >= limit, 0)
        for place in range(start, stop):
            level[place - start, first[place] : last[place]] = 0
        best = level.bitwise_left_shift_(_SHIFT).add_(order).topk(min(most, total), dim=1).values.long()  # of equal ones the first
        found = torch.where(best >> _SHIFT > 0, total - 1 - (best & (POOL - 1)), -1)
        made = torch.full((stop - start, most), -1)
        made[:, : found.shape[1]] = found
        yield np.arange(start, stop), made.numpy()
