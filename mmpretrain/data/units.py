"""What an epoch counts: samples, or every text of every sample. Those that lack what is read, and those in quarantine, are left out and
counted.

Memory grows with the number of shards, not of samples: the table of a shard is made from its mapped index when it is asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmpretrain.data.draws import drawn
from mmpretrain.data.errors import DataError
from mmpretrain.data.index import ShardIndex
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.visual import Shown

if TYPE_CHECKING:
    from mmpretrain.data.seconds import Second

TEXTS = {  # data.text_from -> the kinds of texts of a sample, in the order in which they are numbered
    "captions": ("captions",),
    "statements": ("statements",),
    "questions": ("questions",),
    "captions+questions": ("captions", "questions"),
}
OTHER = 0.99  # of the captions of a shard, to stand for that of any other sample
_KEPT = 64  # tables of shards in memory


class _Table(NamedTuple):
    samples: np.ndarray  # int64: usable samples of the shard
    ends: np.ndarray  # int64: units up to and with each of them


class Units:
    """The units of some shards.

    Args:
        reader: of the shards.
        text_from: one of ``TEXTS``.
        every_text: one unit per text rather than per sample.
        reads: ``pairs``: a sample needs what is shown of it and a text; ``texts``, ``images``: this alone is needed and read.
        shown: of the visual side of a sample: its picture, its regions, its codes.
        quarantine: shard -> numbers of its samples that are left out, ascending; see ``data.quarantine``.

    Raises:
        DataError: no usable sample.
    """

    def __init__(
        self,
        reader: ShardReader,
        text_from: str = "captions",
        every_text: bool = False,
        reads: str = "pairs",
        quarantine: Mapping[int, np.ndarray] | None = None,
        shown: Shown = Shown(),  # noqa: B008  (immutable)
    ) -> None:
        if text_from not in TEXTS:
            raise DataError(f"data.text_from is {text_from!r}; take one of {', '.join(TEXTS)}")
        self.reader, self.text_from, self.reads, self.shown = reader, text_from, reads, shown
        self.every_text = every_text and reads != "images"
        self.quarantine = dict(quarantine or {})
        self.joined = False  # texts are chunks, filled up with those of the samples behind them
        self.second: Second | None = None  # how long second texts are, for ``lengths``; set by whoever knows what is told
        self._tables: OrderedDict[int, _Table] = OrderedDict()
        counts = np.asarray([self._count(shard) for shard in range(len(reader.indexes))], dtype=np.int64).reshape(-1, 4)
        self.sample_ends, self.sizes, self.ends = np.cumsum(counts[:, 0]), counts[:, 1].copy(), np.cumsum(counts[:, 1])
        self.total, self.samples = int(self.ends[-1]), int(self.sample_ends[-1])
        self.most_regions, self.most_codes = int(counts[:, 2].max(initial=0)), int(counts[:, 3].max(initial=0))
        self.quarantined = sum(len(numbers) for numbers in self.quarantine.values())
        self.left_out = len(reader) - self.samples - self.quarantined
        if not self.total:
            raise DataError(self._nothing())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": OrderedDict()}

    @property
    def wants(self) -> str:
        """What a sample needs, in words."""
        seen, told = self.shown.wants, " or ".join(TEXTS[self.text_from])
        return {"pairs": f"{seen} and {told}", "texts": told, "images": seen.replace(", ", " and ")}[self.reads]

    @property
    def reads_image(self) -> bool:
        """Whether pictures are read."""
        return self.reads != "texts" and self.shown.has_image

    @property
    def reads_regions(self) -> bool:
        """Whether regions are read."""
        return self.reads != "texts" and self.shown.has_regions

    @property
    def reads_codes(self) -> bool:
        """Whether image codes are read."""
        return self.reads != "texts" and self.shown.has_codes

    @property
    def read(self) -> tuple[bool, bool, bool]:
        """Whether pictures, regions and codes are read: what ``ShardReader.read_at`` asks for."""
        return self.reads_image, self.reads_regions, self.reads_codes

    @property
    def kind(self) -> str:
        """What its samples have in a batch, in words: samples of two kinds cannot share one."""
        shown = " and ".join(name for name, read in zip(("pictures", "regions", "codes"), self.read, strict=True) if read)
        return self.reads if shown in ("", "pictures") else f"{self.reads} with {shown}"

    def _nothing(self) -> str:
        indexes = self.reader.indexes
        others = [one for one in ("captions", "statements", "questions") if one not in TEXTS[self.text_from] and self.reads != "images"]
        has = {one: sum(int(np.count_nonzero(getattr(index, f"{one}_S"))) for index in indexes) for one in others}
        other = max(has, key=lambda one: has[one], default="")
        hint = "a sample is KEY.jpg|png|webp with KEY.txt or KEY.json"
        hint = f"{has[other]} samples have {other}: set data.text_from={other}" if has.get(other) else hint
        if self.reads_regions and not any(index.regions_S.any() for index in indexes):
            hint = "none of them has KEY.regions.npz: mmpretrain data regions makes them (docs/regions.md)"
        if self.reads_codes and not any(index.code_rows_S.any() for index in indexes):
            hint = "none of them has KEY.codes.npy: mmpretrain data tokens makes them (docs/tools.md)"
        hint = f"all {self.quarantined} others are in quarantine.jsonl" if self.quarantined else hint
        problem = next((f" ({problem})" for index in indexes for problem in index.problems), "")
        return f"data: no sample of {self.reader.paths[0].parent} has {self.wants}; {hint}{problem}"

    def _usable(self, shard: int, index: ShardIndex) -> np.ndarray:
        """Which samples of a shard are used: bool."""
        found = np.ones(len(index), dtype=bool)
        if self.reads_image:
            found &= np.asarray(index.images_S) > 0
        if self.reads_regions:
            found &= np.asarray(index.regions_S) > 0
        if self.reads_codes:
            found &= np.asarray(index.code_rows_S) > 0
        if self.reads != "images":
            found &= self._texts(index) > 0
        if shard in self.quarantine:
            found[self.quarantine[shard]] = False
        return found

    def _texts(self, index: ShardIndex) -> np.ndarray:
        kinds = TEXTS[self.text_from]
        counts = np.asarray(getattr(index, f"{kinds[0]}_S"))
        for kind in kinds[1:]:
            counts = counts.astype(np.int64) + np.asarray(getattr(index, f"{kind}_S"))
        return counts

    def _count(self, shard: int) -> tuple[int, int, int, int]:
        """Usable samples of a shard, its units, the most regions and codes of a sample."""
        index = self.reader.indexes[shard]
        usable = self._usable(shard, index)
        samples = int(np.count_nonzero(usable))
        units = int(self._texts(index)[usable].sum(dtype=np.int64)) if self.every_text else samples
        return samples, units, int(self._regions(index).max(initial=0)), int(self._codes(index).max(initial=0))

    def _regions(self, index: ShardIndex) -> np.ndarray:
        """How many regions of each sample are shown, at most."""
        return np.minimum(index.regions_S, self.shown.regions.most) if self.reads_regions else np.zeros(len(index), dtype=np.int64)

    def _codes(self, index: ShardIndex) -> np.ndarray:
        """How many image codes of each sample are shown."""
        shown = np.asarray(index.code_rows_S, dtype=np.int64) * np.asarray(index.code_columns_S)
        return shown if self.reads_codes else np.zeros(len(index), dtype=np.int64)

    def _table(self, shard: int) -> _Table:
        if shard not in self._tables:
            index = self.reader.indexes[shard]
            samples = np.flatnonzero(self._usable(shard, index))
            counts = self._texts(index)[samples].astype(np.int64) if self.every_text else np.ones(len(samples), dtype=np.int64)
            self._tables[shard] = _Table(samples, np.cumsum(counts))
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

    def has(self, shard: int, sample: int) -> bool:
        """Whether a sample of a shard is used."""
        samples = self._table(shard).samples
        row = int(np.searchsorted(samples, sample))
        return row < len(samples) and int(samples[row]) == sample

    def lengths(self, shard: int, units: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Of units of one shard, from the index alone: int64 (7, units), the rows height and width of the picture, bytes of the text,
        number of regions, the number of the text (-1 without one), number of codes, bytes of the second text (see ``seconds``); 0 for what
        is not read. Regions are counted without a look at their scores: with ``min_score`` there may be fewer.

        Args:
            keys: uint64, one per unit, of the drawn text where a unit is a sample with several.
        """
        index, table = self.reader.indexes[shard], self._table(shard)
        row = np.searchsorted(table.ends, units, side="right")
        sample = table.samples[row]
        found = np.zeros((7, len(units)), dtype=np.int64)
        if self.reads_image:
            found[0], found[1] = index.heights_S[sample], index.widths_S[sample]
        found[3], found[5] = self._regions(index)[sample], self._codes(index)[sample]
        if self.reads == "images":
            found[4] = -1
            return found
        counts = self._texts(index).astype(np.int64)
        if self.every_text:
            found[4] = units - np.concatenate([[0], table.ends])[row]
        else:
            found[4] = drawn(keys, counts[sample], "caption")
        found[2] = self._text_bytes(index, sample, found[4])
        if self.second is not None:
            found[6] = self.second.sizes(found[3], self._longest_other(index, sample, found[4]) if self.second.caption else found[3])
        return found

    def _longest_other(self, index: ShardIndex, sample: np.ndarray, number: np.ndarray) -> np.ndarray:
        """Bytes of the longest caption that may stand beside the one that is told of each of some samples: the sample's others, or that of
        another one (``OTHER`` of the shard are no longer). 0 where it has no other, and where no caption is told."""
        counts = np.asarray(index.captions_S, dtype=np.int64)
        ends = np.cumsum(counts[sample])
        firsts = ends - counts[sample]
        table = np.repeat((np.cumsum(counts) - counts)[sample] - firsts, counts[sample]) + np.arange(ends[-1] if len(ends) else 0)
        sizes = np.asarray(index.caption_bytes_C, dtype=np.int64)[table]
        told = (TEXTS[self.text_from][0] == "captions") & (number < counts[sample]) & (counts[sample] > 1)
        if not told.any():
            return np.zeros(len(sample), dtype=np.int64)
        sizes[(firsts + number)[told]] = 0
        found = np.zeros(len(sample), dtype=np.int64)
        some = counts[sample] > 0
        found[some] = np.maximum.reduceat(sizes, firsts[some])
        return np.maximum(found, int(np.ceil(np.quantile(index.caption_bytes_C, OTHER)))) * told

    def _text_bytes(self, index: ShardIndex, sample: np.ndarray, number: np.ndarray) -> np.ndarray:
        """Bytes of one text of each of some samples, by its number among those of its sample: int64."""
        found, left = np.zeros(len(sample), dtype=np.int64), number.copy()
        for kind in TEXTS[self.text_from]:
            counts = np.asarray(getattr(index, f"{kind}_S"), dtype=np.int64)
            inside = (left >= 0) & (left < counts[sample])
            starts = (np.cumsum(counts) - counts)[sample]
            found[inside] = getattr(index, f"{kind.removesuffix('s')}_bytes_C")[(starts + left)[inside]]
            left = left - counts[sample]
        return found
