"""What an epoch counts: samples, or every text of every sample; those without a picture or a text are left out and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmpretrain.data.errors import DataError
from mmpretrain.data.index import ShardIndex

TEXTS = ("captions", "statements")


class _Table(NamedTuple):
    samples: np.ndarray  # int64: usable samples of the shard
    ends: np.ndarray  # int64: units up to and with each of them


class Units:
    """The units of some shards.

    Args:
        indexes: of the shards.
        text_from: ``captions`` or ``statements``.
        every_text: one unit per text rather than per sample.

    Raises:
        DataError: no usable sample.
    """

    def __init__(self, indexes: Sequence[ShardIndex], text_from: str = "captions", every_text: bool = False) -> None:
        if text_from not in TEXTS:
            raise DataError(f"data.text_from is {text_from!r}; take one of {', '.join(TEXTS)}")
        self.text_from, self.every_text = text_from, every_text
        tables = [self._table(index) for index in indexes]
        self.samples_per_shard = np.asarray([len(table.samples) for table in tables], dtype=np.int64)
        self.sizes = np.asarray([table.ends[-1] if len(table.ends) else 0 for table in tables], dtype=np.int64)
        self.sample_ends = np.cumsum(self.samples_per_shard)
        self.total, self.samples = int(self.sizes.sum()), int(self.samples_per_shard.sum())
        self.left_out = sum(len(index) for index in indexes) - self.samples
        self._tables: list[_Table] = tables
        if not self.total:
            other = TEXTS[1 - TEXTS.index(text_from)]
            has = sum(int(np.count_nonzero(getattr(index, f"{other}_S"))) for index in indexes)
            hint = (
                f"{has} samples have {other}: set data.text_from={other}"
                if has
                else "a sample is KEY.jpg|png|webp with KEY.txt or KEY.json"
            )
            problem = next((problem for index in indexes for problem in index.problems), None)
            raise DataError(
                f"data: no sample of {indexes[0].path.parent} has a picture and {text_from}; {hint}" + (f" ({problem})" if problem else "")
            )

    def _table(self, index: ShardIndex) -> _Table:
        texts = getattr(index, f"{self.text_from}_S")
        samples = np.flatnonzero((index.images_S > 0) & (texts > 0))
        counts = texts[samples].astype(np.int64) if self.every_text else np.ones(len(samples), dtype=np.int64)
        return _Table(samples, np.cumsum(counts))

    def resolve(self, shard: int, unit: int) -> tuple[int, int | None, int]:
        """Of a unit of a shard: (sample in the shard, its text or None for a drawn one, number among the usable samples of all shards)."""
        table = self._tables[shard]
        row = int(np.searchsorted(table.ends, unit, side="right"))
        text = unit - (int(table.ends[row - 1]) if row else 0) if self.every_text else None
        first = int(self.sample_ends[shard - 1]) if shard else 0
        return int(table.samples[row]), text, first + row

    def usable(self, number: int) -> tuple[int, int]:
        """(shard, sample in it) of the ``number``-th usable sample."""
        shard = int(np.searchsorted(self.sample_ends, number, side="right"))
        return shard, int(self._tables[shard].samples[number - (int(self.sample_ends[shard - 1]) if shard else 0)])
