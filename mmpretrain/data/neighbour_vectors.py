"""Texts that are alike by the vectors of a model: neighbours from a file that ``mmpretrain embed`` wrote, in the place of TF-IDF.

The file has one vector for the first caption of each sample. The neighbours of all texts of a sample are the first captions of the other
samples with the largest cosine to it; a sample that the file lacks, or whose vector is not finite, has none and is none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from mmpretrain.data.errors import DataError
from mmpretrain.data.reader import ShardReader

SHIFT = 15
_BITS = 15  # of (cosine + 1): so that rounding decides nothing
_ROWS = 256


def sum_of(path: Path) -> str:
    """sha256 of the file.

    Raises:
        DataError: there is none.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"data.neighbours.file={path}: {error.strerror}") from None


def vectors_of(path: Path, reader: ShardReader) -> np.ndarray:
    """The vector of each sample of the set, by its number: float32 (S, D), NaN where the file has none.

    Raises:
        DataError: not such a file, or none of its keys is in the set.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            keys, vectors_KD = file["key"], np.asarray(file["text"], dtype=np.float32)
        if vectors_KD.ndim != 2 or keys.shape != vectors_KD.shape[:1]:
            raise ValueError("key and text do not fit together")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"data.neighbours.file={path}: no vectors of mmpretrain embed --out FILE.npz ({error})") from None
    rows = {str(key): row for row, key in enumerate(keys.tolist())}
    places = [rows.get(index.key(sample), -1) for index in reader.indexes for sample in range(len(index))]
    found = np.asarray(places, dtype=np.int64)
    if not (found >= 0).any():
        raise DataError(f"data.neighbours.file={path}: it has the vectors of other samples (the first key is {next(iter(rows), None)!r})")
    return np.where((found >= 0)[:, None], vectors_KD[found], np.float32(np.nan))


def fill(table: np.ndarray, per_sample: np.ndarray, vectors_SD: np.ndarray, pool: int, below: float, told: Callable[[int], None]) -> None:
    """Every row of the table, -1 where a text has fewer neighbours; samples are compared within pools of at most ``pool``."""
    table[:] = -1
    firsts = np.cumsum(per_sample) - per_sample
    known = np.flatnonzero((per_sample > 0) & np.isfinite(vectors_SD).all(1))
    step = max(1, -(-len(known) // pool))
    for start in range(step):
        samples = known[start::step]
        for rows, found in similar(vectors_SD[samples], table.shape[1], below):
            numbers = np.where(found >= 0, firsts[samples[found]], -1)
            for row, line in zip(samples[rows].tolist(), numbers, strict=True):
                table[firsts[row] : firsts[row] + per_sample[row]] = line
            told(int(per_sample[samples[rows]].sum()))


def similar(vectors_SD: np.ndarray, most: int, below: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, int64 (rows, most) of their neighbours, the most similar first, -1 where there are fewer), a part of the rows at a time. At
    most 2 ** ``SHIFT`` vectors; only cosines below ``below`` count."""
    unit_SD = F.normalize(torch.from_numpy(np.ascontiguousarray(vectors_SD)), dim=1)
    total = len(unit_SD)
    order, limit = (total - 1 - torch.arange(total)).int(), int(np.ceil((below + 1) * (1 << _BITS)))
    for start in range(0, total, _ROWS):
        stop = min(start + _ROWS, total)
        level = (unit_SD[start:stop] @ unit_SD.T).add_(1).mul_(1 << _BITS).round_().clamp_(1, (1 << (_BITS + 1)) - 1).int()
        level.masked_fill_(level >= limit, 0)
        level[torch.arange(stop - start), torch.arange(start, stop)] = 0
        best = level.bitwise_left_shift_(SHIFT).add_(order).topk(min(most, total), dim=1).values.long()  # of equal ones the first
        found = torch.where(best >> SHIFT > 0, total - 1 - (best & ((1 << SHIFT) - 1)), -1)
        made = torch.full((stop - start, most), -1)
        made[:, : found.shape[1]] = found
        yield np.arange(start, stop), made.numpy()
