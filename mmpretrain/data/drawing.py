"""What preparers draw from at a position of an epoch: generators, other samples, texts; all of it a function of (seed, epoch, position)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmpretrain.data.draws import generator
from mmpretrain.data.errors import DataError
from mmpretrain.data.neighbours import TextPlace
from mmpretrain.random import key_of
from mmpretrain.types import Tokens, Visual

if TYPE_CHECKING:
    from mmpretrain.data.dataset import Source


class PositionDraw:
    """``types.Draw`` at one position of an epoch.

    Args:
        source: of the sample; other samples come from it too.
        seed: root of all draws.
        epoch: -1 for validation.
        position: in the order.
        augment: whether pictures are augmented.
    """

    def __init__(self, source: Source, seed: int, epoch: int, position: int, augment: bool) -> None:
        self.source, self.seed, self.epoch, self.position, self.augment = source, seed, epoch, position, augment
        self.key = key_of(seed, epoch, position)
        self.number = -1  # of the sample itself among the usable ones
        self.shown: TextPlace | None = None  # the text that is shown

    def generator(self, stream: str, shared_by: int = 1) -> np.random.Generator:
        """A generator for one named use; ``shared_by=2``: the same for positions 2i and 2i + 1."""
        if shared_by == 1:
            return generator(self.key, name=stream)
        return generator(self.seed, self.epoch, self.position // shared_by, shared_by, name=stream)

    def _other(self, rng: np.random.Generator) -> tuple[int, int]:
        samples = self.source.units.samples
        if samples < 2:
            raise DataError("data: another sample is to be drawn, but the set has only one; add samples or turn negatives off")
        drawn = int(rng.integers(samples - 1))
        return self.source.units.usable(drawn + (drawn >= self.number))

    def other_visual(self, k: int) -> tuple[str, Visual]:
        """(key, what it shows) of the k-th other sample, uniform over its source, never the sample itself."""
        self.source.must_have("picture")
        rng = self.generator(f"other_image/{k}")
        shard, place = self._other(rng)
        return self.source.seen(shard, place, rng if self.augment else None)

    def other_text(self, k: int) -> tuple[str, Tokens]:
        """(key, one text) of the k-th other sample, uniform over its source, never the sample itself; with that sample's own tags, where
        texts are told with tags."""
        self.source.must_have("text")
        rng = self.generator(f"other_text/{k}")
        shard, place = self._other(rng)
        return self._text(shard, place, lambda texts: int(rng.integers(len(texts))))

    def hard_text(self, k: int) -> tuple[str, Tokens] | None:
        """(key, text) of the k-th draw among the texts that are most like the shown one; with its own sample's tags."""
        source = self.source
        if source.neighbours is None or self.shown is None:
            raise DataError("data: similar texts are drawn by a preparer that does not say so (`wants`), or beside no text")
        found = self.generator(f"hard_text/{k}").permutation(source.neighbours.of(self.shown))
        places = (source.neighbours.locate(int(number)) for number in found)
        chosen = next((one for one in places if source.units.has(one.shard, one.sample)), None)
        return None if chosen is None else self._text(chosen.shard, chosen.sample, lambda texts: chosen.text)

    def _text(self, shard: int, place: int, choose: Callable[[Sequence[str]], int]) -> tuple[str, Tokens]:
        source = self.source
        sample = source.reader.read_at(shard, place, False, source.tags_need_regions, False)
        texts = source.texts(sample)
        tags = source.tags(shard, sample, source.regions(shard, sample) if source.tags_need_regions else None)
        return sample.key, self.tokenize(texts[choose(texts)], tags)

    def tokenize(self, text: str, second: str | None = None) -> Tokens:
        """One text, or a pair; in training with BPE dropout, where the run has it. Asked again, an example gives the same tokens."""
        rate = self.source.dropout if self.augment else 0.0
        return self.source.tokenizer.tokenize(text, second, rate, self.generator("bpe") if rate else None)
