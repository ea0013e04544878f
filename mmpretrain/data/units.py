"""What an epoch counts: samples, or every text of every sample; those without a picture or a text are left out and counted.

Memory grows with the number of shards, not of samples: the table of a shard is made from its mapped index when it is asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from mmpretrain.data.errors import DataError
from mmpretrain.data.reader import ShardReader

TEXTS = ("captions", "statements")
_KEPT = 64  # tables of shards in memory


class _Table(NamedTuple):
    samples: np.ndarray  # int64: usable samples of the shard
    ends: np.ndarray  # int64: units up to and with each of them


class Units:
    """The units of some shards.

    Args:
        reader: of the shards.
        text_from: ``captions`` or ``statements``.
        every_text: one unit per text rather than per sample.

    Raises:
        DataError: no usable sample.
    """

    def __init__(self, reader: ShardReader, text_from: str = "captions", every_text: bool = False) -> None:
        if text_from not in TEXTS:
            raise DataError(f"data.text_from is {text_from!r}; take one of {', '.join(TEXTS)}")
        self.reader, self.text_from, self.every_text = reader, text_from, every_text
        self._tables: OrderedDict[int, _Table] = OrderedDict()
        tables = (self._make(shard) for shard in range(len(reader.indexes)))
        counts = np.asarray([(len(one.samples), one.ends[-1] if len(one.ends) else 0) for one in tables], dtype=np.int64)
        self.sample_ends, self.sizes, self.ends = np.cumsum(counts[:, 0]), counts[:, 1].copy(), np.cumsum(counts[:, 1])
        self.total, self.samples = int(self.ends[-1]), int(self.sample_ends[-1])
        self.left_out = len(reader) - self.samples
        if not self.total:
            raise DataError(self._nothing())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": OrderedDict()}

    def _nothing(self) -> str:
        indexes = self.reader.indexes
        other = TEXTS[1 - TEXTS.index(self.text_from)]
        has = sum(int(np.count_nonzero(getattr(index, f"{other}_S"))) for index in indexes)
        hint = f"{has} samples have {other}: set data.text_from={other}" if has else "a sample is KEY.jpg|png|webp with KEY.txt or KEY.json"
        problem = next((f" ({problem})" for index in indexes for problem in index.problems), "")
        return f"data: no sample of {indexes[0].path.parent} has a picture and {self.text_from}; {hint}{problem}"

    def _make(self, shard: int) -> _Table:
        index = self.reader.indexes[shard]
        texts = getattr(index, f"{self.text_from}_S")
        samples = np.flatnonzero((index.images_S > 0) & (texts > 0))
        counts = texts[samples].astype(np.int64) if self.every_text else np.ones(len(samples), dtype=np.int64)
        return _Table(samples, np.cumsum(counts))

    def _table(self, shard: int) -> _Table:
        if shard not in self._tables:
            self._tables[shard] = self._make(shard)
            while len(self._tables) > _KEPT:
                self._tables.popitem(last=False)
        self._tables.move_to_end(shard)
        return self._tables[shard]

    def locate(self, number: int) -> tuple[int, int]:
        """(shard, unit in it) of the ``number``-th unit of all shards."""
        shard = int(np.searchsorted(self.ends, number, side="right"))
        return shard, int(number - (self.ends[shard - 1] if shard else 0))

    def resolve(self, shard: int, unit: int) -> tuple[int, int | None, int]:
        """Of a unit of a shard: (sample in the shard, its text or None for a drawn one, number among the usable samples of all shards)."""
        table = self._table(shard)
        row = int(np.searchsorted(table.ends, unit, side="right"))
        text = unit - (int(table.ends[row - 1]) if row else 0) if self.every_text else None
        return int(table.samples[row]), text, (int(self.sample_ends[shard - 1]) if shard else 0) + row

    def usable(self, number: int) -> tuple[int, int]:
        """(shard, sample in it) of the ``number``-th usable sample."""
        shard = int(np.searchsorted(self.sample_ends, number, side="right"))
        return shard, int(self._table(shard).samples[number - (int(self.sample_ends[shard - 1]) if shard else 0)])
