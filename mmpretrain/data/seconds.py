"""How long the second text of a pair is, before anything of the sample is read: tags (``data.tags``), another caption (VisualBERT).

For batches by length (``data.buckets``) alone. Exact lengths would need the samples; these are estimates that follow from the index:

- tags by the classes of regions: as many names as regions are shown, each of the mean length of the names of the set (``regions.json``),
  the background aside;
- tags of ``KEY.json``: the longest of the first ``TRIED`` samples of the source, for every sample;
- another caption: the longest of the sample's others, or as many bytes as 99 of 100 captions of the shard have at most where that is more:
  the one that is drawn may be another sample's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from mmpretrain.data.errors import BadSample
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.tags import Tagger

TRIED = 64


class Second(NamedTuple):
    """The second texts of a source."""

    caption: bool = False  # another caption
    name: float = 0.0  # bytes of the name of a region's class, with the space behind it
    names: int | None = None  # at most so many of them
    tags: int = 0  # bytes of tags that do not hang on the regions

    @property
    def identity(self) -> str:
        """What must be equal for batches to end at the same samples."""
        most = f", at most {self.names}" if self.names is not None else ""
        parts = [("another caption", self.caption), (f"{self.name:.3f} bytes a region{most}", self.name)]
        return " and ".join(text for text, there in [*parts, (f"tags of {self.tags} bytes", self.tags)] if there)

    def sizes(self, regions: np.ndarray, longest_other: np.ndarray) -> np.ndarray:
        """Bytes of the second texts, 0 where a text stays alone: int64.

        Args:
            regions: that are shown of each sample.
            longest_other: bytes of the longest caption that may be drawn; 0 where there is none.
        """
        told = regions if self.names is None else np.minimum(regions, self.names)
        tags = np.ceil(told * self.name).astype(np.int64) + self.tags
        return np.maximum(tags, longest_other) if self.caption else tags


def second(reader: ShardReader, tagger: Tagger | None, shows_regions: bool, wants: Collection[str]) -> Second | None:
    """The second texts of a source; None where texts stand alone.

    Args:
        reader: of its shards.
        tagger: makes its tags.
        shows_regions: whether it shows regions.
        wants: of its preparers; ``pair``: the text may become a pair with another caption.
    """
    made = Second(caption="pair" in wants)
    if tagger is not None and tagger.reads_regions and shows_regions and tagger.classes:
        sizes = [len(name.encode()) + 1 for number, name in enumerate(tagger.classes) if number != tagger.background]
        most = [tagger.options.most, len(sizes) if not tagger.options.repeats else None]
        made = made._replace(name=float(np.mean(sizes or [0])), names=min((x for x in most if x is not None), default=None))
    elif tagger is not None:
        made = made._replace(tags=_longest(reader, tagger))
    return made if made != Second() else None


def _longest(reader: ShardReader, tagger: Tagger) -> int:
    """Bytes of the longest tags of the first samples."""
    longest = 0
    for number in range(min(TRIED, len(reader))):
        try:
            found = tagger.tags(reader.read_at(*reader.locate(number), images=False))
        except BadSample:
            continue
        longest = max(longest, len((found or "").encode()))
    return longest
