"""Positions of the order -> examples -> micro-batches, in a worker; every draw is a function of (seed, epoch, position)."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from mmpretrain.data.collate import Collator
from mmpretrain.data.decode import decode_image, join
from mmpretrain.data.errors import BadSample
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.plan import Plan, slices
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.text import Tokenizer
from mmpretrain.data.units import Units
from mmpretrain.random import key_of, stream
from mmpretrain.types import Batch, Example, Preparer, Sample, Tokens

_WORD = (1 << 64) - 1
_TRIES = 16

_stream = functools.lru_cache(1024)(stream)


def generator(*values: int, name: str) -> np.random.Generator:
    """A counter-based generator keyed by integers and the name of its use."""
    return np.random.Generator(np.random.Philox(key=np.array([key_of(*values) & _WORD, _stream(name)], dtype=np.uint64)))


class Source:
    """A set of samples with the way from bytes to examples.

    Args:
        reader: of the shards.
        units: of the same shards.
        tokenizer: of texts.
        transform: of pictures.
        seed: root of all draws.
        on_bad: ``stop`` with the error, or ``replace`` a sample that cannot be decoded by another one, drawn by its position.
    """

    def __init__(
        self, reader: ShardReader, units: Units, tokenizer: Tokenizer, transform: ImageTransform, seed: int, on_bad: str = "stop"
    ) -> None:
        self.reader, self.units, self.tokenizer, self.transform = reader, units, tokenizer, transform
        self.seed, self.on_bad = seed, on_bad

    def picture(self, shard: int, sample: Sample, rng: np.random.Generator | None) -> Tensor:
        """The transformed picture(s) of a sample, several side by side: uint8 (3, H, W)."""
        try:
            return self.transform(join([decode_image(data) for data in sample.images]), rng)
        except BadSample as error:
            raise BadSample(f"{self.reader.paths[shard]} key {sample.key!r}: {error}") from None

    def texts(self, sample: Sample) -> Sequence[str]:
        return sample.captions if self.units.text_from == "captions" else [one.text for one in sample.statements]

    def example(self, shard: int, unit: int, draw: PositionDraw) -> Example:
        """The example of a unit, before preparers."""
        place, text, number = self.units.resolve(shard, unit)
        draw.number = number
        sample = self.reader.read_at(shard, place)
        texts = self.texts(sample)
        if text is None:
            text = int(draw.generator("caption").integers(len(texts))) if len(texts) > 1 else 0
        captions = self.units.text_from == "captions"
        return Example(
            key=sample.key,
            position=draw.position if draw.epoch >= 0 else -1,
            draw_key=draw.key,
            text=self.tokenizer.tokenize(texts[text]),
            image=self.picture(shard, sample, draw.generator("augment") if draw.augment else None),
            matched=captions or sample.statements[text].label,
            meta={**sample.meta, "caption_index" if captions else "statement_index": text},
        )


class PositionDraw:
    """``types.Draw`` at one position of an epoch.

    Args:
        source: where other samples come from.
        epoch: -1 for validation.
        position: in the order.
        augment: whether pictures are augmented.
    """

    def __init__(self, source: Source, epoch: int, position: int, augment: bool) -> None:
        self.source, self.epoch, self.position, self.augment = source, epoch, position, augment
        self.key = key_of(source.seed, epoch, position)
        self.number = -1  # of the sample itself among the usable ones

    def generator(self, stream: str, shared_by: int = 1) -> np.random.Generator:
        """A generator for one named use; ``shared_by=2``: the same for positions 2i and 2i + 1."""
        if shared_by == 1:
            return generator(self.key, name=stream)
        return generator(self.source.seed, self.epoch, self.position // shared_by, shared_by, name=stream)

    def _other(self, rng: np.random.Generator) -> tuple[int, int]:
        samples = self.source.units.samples
        if samples < 2:
            raise BadSample("another sample is to be drawn, but the set has only one; add samples or turn negatives off")
        drawn = int(rng.integers(samples - 1))
        return self.source.units.usable(drawn + (drawn >= self.number))

    def other_image(self, k: int) -> tuple[str, Tensor]:
        """(key, uint8 (3, H, W)) of the k-th other sample, uniform over the whole set, never the sample itself."""
        rng = self.generator(f"other_image/{k}")
        shard, place = self._other(rng)
        sample = self.source.reader.read_at(shard, place)
        return sample.key, self.source.picture(shard, sample, rng if self.augment else None)

    def other_text(self, k: int) -> tuple[str, Tokens]:
        """(key, one text) of the k-th other sample, uniform over the whole set, never the sample itself."""
        rng = self.generator(f"other_text/{k}")
        shard, place = self._other(rng)
        sample = self.source.reader.read_at(shard, place, images=False)
        texts = self.source.texts(sample)
        return sample.key, self.tokenize(texts[int(rng.integers(len(texts)))])

    def tokenize(self, text: str) -> Tokens:
        return self.source.tokenizer.tokenize(text)


class Assembler:
    """Examples and batches of a source with the preparers of the objectives."""

    def __init__(self, source: Source, preparers: Mapping[str, Preparer], collator: Collator) -> None:
        self.source, self.preparers, self.collator = source, dict(preparers), collator
        self.replaced = 0

    def example(self, shard: int, unit: int, epoch: int, position: int, augment: bool) -> Example:
        """One prepared example; a bad one is an error or is replaced, as the source says."""
        draw = PositionDraw(self.source, epoch, position, augment)
        for attempt in range(_TRIES):
            try:
                made = self.source.example(shard, unit, draw)
                return made._replace(targets={name: one.prepare(made, draw) for name, one in self.preparers.items()})
            except BadSample as error:
                if self.source.on_bad != "replace":
                    raise
                self._report(error)
                shard, unit = self.source.units.locate(int(draw.generator(f"spare/{attempt}").integers(self.source.units.total)))
        raise BadSample(f"{_TRIES} samples in a row cannot be decoded; check the shards (the last: {error_text(self.source, shard, unit)})")

    def _report(self, error: BadSample) -> None:
        self.replaced += 1
        if self.replaced & (self.replaced - 1) == 0:  # the 1st, 2nd, 4th, ...: never a flood
            print(f"mmpretrain: warning: {error}; replaced ({self.replaced} so far in this worker)", file=sys.stderr, flush=True)

    def batch(self, units: Sequence[tuple[int, int]], epoch: int, positions: Sequence[int], augment: bool) -> Batch:
        """The batch of (shard, unit) pairs at positions."""
        pairs = zip(units, positions, strict=True)
        examples = [self.example(int(shard), int(unit), epoch, int(position), augment) for (shard, unit), position in pairs]
        return self.collator.batch(examples, self.preparers)


def error_text(source: Source, shard: int, unit: int) -> str:
    """Shard and key of a unit."""
    return source.reader.name(shard, source.units.resolve(shard, unit)[0])


class StepDataset(Dataset):
    """Item ``(epoch, step)`` is what this rank needs for one optimiser step: a tuple of micro-batches."""

    def __init__(self, assembler: Assembler, plan: Plan, rank: int, world: int, accumulate: int) -> None:
        self.assembler, self.plan = assembler, plan
        self.rank, self.world, self.accumulate = rank, world, accumulate

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, item: tuple[int, int]) -> tuple[Batch, ...]:
        epoch, step = item
        made = []
        for positions in slices(step, self.plan.batch_size, self.rank, self.world, self.accumulate):
            shards, units = self.plan.locate(epoch, positions)
            made.append(self.assembler.batch(list(zip(shards, units, strict=True)), epoch, positions.tolist(), augment=True))
        return tuple(made)


class ValDataset(Dataset):
    """Item ``i`` is the ``i``-th validation batch of this rank: fixed draws, no augmentation."""

    def __init__(self, assembler: Assembler, chosen: np.ndarray, cuts: Sequence[np.ndarray]) -> None:
        self.assembler, self.chosen, self.cuts = assembler, chosen, list(cuts)

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, item: int) -> Batch:
        units = [self.assembler.source.units.locate(int(number)) for number in self.chosen[self.cuts[item]]]
        return self.assembler.batch(units, -1, self.cuts[item].tolist(), augment=False)
