"""Positions of the order -> examples -> micro-batches, in a worker; every draw is a function of (seed, epoch, position)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmpretrain.data import told, working
from mmpretrain.data.bad import CONSECUTIVE, record
from mmpretrain.data.codes import MAX_KNOWN, decode_codes
from mmpretrain.data.collate import Collator
from mmpretrain.data.drawing import PositionDraw
from mmpretrain.data.errors import BadSample, DataError, named
from mmpretrain.data.feed import Feed, Item
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.joined import chunk
from mmpretrain.data.neighbours import Neighbours, TextPlace
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.regions import decode_regions
from mmpretrain.data.tags import Tagger
from mmpretrain.data.text import Tokenizer
from mmpretrain.data.track import Order, Place, Slots
from mmpretrain.data.units import Units
from mmpretrain.types import Batch, Example, Preparer, Regions, Replaced, Sample, Tokens, Visual


class Source:
    """A set of samples with the way from bytes to examples.

    Args:
        reader: of the shards.
        units: of the same shards; they say what is read of a sample.
        tokenizer: of texts; None where none are read.
        transform: of pictures.
        on_bad: ``stop`` with the error, or ``replace`` a sample that cannot be decoded by another one, drawn by its position.
        name: of the source in a mixture.
        preparers: name of an objective that reads this source -> its preparer.
        region_width: values that the feature of a region must have; None: any number.
        tagger: makes the tags that texts are told with; None: texts stand alone.
        neighbours: the texts that are alike; None: no preparer wants them.
        codes: K, which the ids of image codes must be below.
        dropout: rate of BPE dropout of texts in training.
    """

    def __init__(
        self,
        reader: ShardReader,
        units: Units,
        tokenizer: Tokenizer | None,
        transform: ImageTransform,
        on_bad: str = "stop",
        name: str = "",
        preparers: Mapping[str, Preparer] | None = None,
        region_width: int | None = None,
        tagger: Tagger | None = None,
        neighbours: Neighbours | None = None,
        codes: int = MAX_KNOWN,
        dropout: float = 0.0,
    ) -> None:
        self.region_width, self.tagger, self.neighbours, self.known, self.dropout = region_width, tagger, neighbours, codes, dropout
        self.reader, self.units, self.tokenizer, self.transform = reader, units, tokenizer, transform
        self.on_bad, self.name, self.preparers = on_bad, name, dict(preparers or {})
        self.wants = {what for one in self.preparers.values() for what in getattr(one, "wants", ())}
        self.answers = {name: number for number, name in enumerate(() if tokenizer is None else tokenizer.vocabulary.answers)}

    def picture(self, shard: int, sample: Sample, rng: np.random.Generator | None) -> Tensor:
        """The transformed picture(s) of a sample, several side by side: uint8 (3, H, W)."""
        try:
            return self.transform.read(sample.images, rng)
        except BadSample as error:
            raise BadSample.of(self.reader.paths[shard], sample.key, error) from None

    def regions(self, shard: int, sample: Sample) -> Regions:
        """The regions of a sample that are shown."""
        try:
            found = decode_regions(sample.regions or b"")
        except BadSample as error:
            raise BadSample.of(self.reader.paths[shard], sample.key, error) from None
        place = named(str(self.reader.paths[shard]), sample.key)
        if self.region_width is not None and found.features.shape[1] != self.region_width:
            raise DataError(
                f"{place}: its regions have {found.features.shape[1]} values, others have {self.region_width}; "
                "make the regions of all shards by one extractor (mmpretrain data regions)"
            )
        try:
            return self.units.shown.regions.choose(found)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None

    def codes(self, shard: int, sample: Sample) -> Tensor:
        """The image codes of a sample: int64 (h, w)."""
        try:
            return torch.from_numpy(decode_codes(sample.codes or b"", self.known).astype(np.int64))
        except BadSample as error:
            raise BadSample.of(self.reader.paths[shard], sample.key, error) from None

    def visual(self, shard: int, sample: Sample, rng: np.random.Generator | None) -> Visual:
        """What is shown of a sample. ``rng``: of the augmentation of pictures; None: none."""
        image = self.picture(shard, sample, rng if self.units.shown.augments else None) if self.units.reads_image else None
        regions = self.regions(shard, sample) if self.units.reads_regions else None
        codes = self.codes(shard, sample) if self.units.reads_codes else None
        return Visual(image, regions, self.tags(shard, sample, regions), codes)

    def seen(self, shard: int, place: int, rng: np.random.Generator | None) -> tuple[str, Visual]:
        """(key, what is shown) of a sample by its number in its shard."""
        sample = self.reader.read_at(shard, place, *self.units.read)
        return sample.key, self.visual(shard, sample, rng)

    @property
    def tags_need_regions(self) -> bool:
        """Whether the tags of a sample may hang on its regions."""
        return self.tagger is not None and self.tagger.reads_regions and self.units.reads_regions

    def tags(self, shard: int, sample: Sample, regions: Regions | None) -> str | None:
        """The tags of what a sample shows; None where there are none, or where nothing is shown."""
        if self.tagger is None or self.units.reads == "texts":
            return None
        try:
            return self.tagger.tags(sample, regions)
        except BadSample as error:
            raise BadSample.of(self.reader.paths[shard], sample.key, error) from None

    def texts(self, sample: Sample) -> Sequence[str]:
        """The texts of a sample, by their numbers."""
        return told.texts(sample, self.units.text_from)

    def telling(self, shard: int, sample: Sample, number: int) -> told.Telling:
        """What is said of a text of a sample."""
        try:
            return told.telling(sample, self.units.text_from, number, self.wants, self.answers)
        except BadSample as error:
            raise BadSample.of(self.reader.paths[shard], sample.key, error) from None

    def example(self, shard: int, unit: int, draw: PositionDraw, text: int | None = None) -> Example:
        """The example of a unit, before preparers. ``text``: which of its texts is shown, where the plan has drawn it."""
        place, own, number = self.units.resolve(shard, unit)
        draw.number = number
        sample = self.reader.read_at(shard, place, *self.units.read)
        texts = self.texts(sample) if self.units.reads != "images" else ()
        chosen = own if own is not None else text
        if texts and chosen is None:
            chosen = int(draw.generator("caption").integers(len(texts))) if len(texts) > 1 else 0
        draw.shown = TextPlace(shard, place, chosen) if chosen is not None and texts else None
        visual = self.visual(shard, sample, draw.generator("augment") if draw.augment and self.units.reads_image else None)
        said = self.telling(shard, sample, chosen) if chosen is not None and texts else told.Telling(True, {})
        return Example(
            key=sample.key,
            position=draw.position if draw.epoch >= 0 else -1,
            draw_key=draw.key,
            text=self._told(texts[chosen], visual, number, draw) if chosen is not None and texts else None,
            image=visual.image,
            matched=said.matched,
            meta={**sample.meta, **said.about},
            regions=visual.regions,
            codes=visual.codes,
        )

    def _told(self, text: str, visual: Visual, number: int, draw: PositionDraw) -> Tokens:
        """The tokens of a text beside what is shown: a pair with the tags; a chunk where texts are joined."""
        if not self.units.joined:
            return draw.tokenize(text, visual.tags)
        behind = ((number + step) % self.units.samples for step in range(1, self.units.samples))
        others = (self._first_text(*self.units.usable(other)) for other in behind)
        return chunk(text, (found for found in others if found), draw.tokenize, self.tokenizer.max_tokens)

    def _first_text(self, shard: int, place: int) -> str:
        """Nothing where the sample cannot be read."""
        try:
            return next(iter(self.texts(self.reader.read_at(shard, place, False, False, False))), "")
        except BadSample:
            return ""

    def must_have(self, what: str) -> None:
        """Raise DataError where other samples cannot give ``what``, a picture or a text."""
        if self.units.reads == ("texts" if what == "picture" else "images"):
            raise DataError(
                f"data: an objective draws another {what}, but source {self.name!r} has {self.units.reads} alone; "
                "name the sources that it reads in its `sources`"
            )


class Assembler:
    """Examples and batches of the sources of a run, prepared for the objectives that read them."""

    def __init__(self, sources: Sequence[Source], collator: Collator) -> None:
        self.sources, self.collator = list(sources), collator
        self.replaced = 0  # in this process

    def example(self, draw: PositionDraw, shard: int, unit: int, text: int | None, found: list[Replaced]) -> Example:
        """One prepared example; where it, or another sample that a preparer draws for it, is bad, that is an error, or the example is
        replaced, as its source says, and the sample that is bad goes to ``found``."""
        source = draw.source
        for attempt in range(CONSECUTIVE):
            try:
                made = source.example(shard, unit, draw, text)
                return made._replace(targets={name: one.prepare(made, draw) for name, one in source.preparers.items()})
            except BadSample as error:
                if source.on_bad != "replace":
                    raise
                found.append(self._record(source, shard, unit, error))
                shard, unit = source.units.locate(int(draw.generator(f"spare/{attempt}").integers(source.units.total)))
                text = None
        raise DataError(f"data: {CONSECUTIVE} samples in a row cannot be read; check the shards (the last: {found[-1].error})")

    def _record(self, source: Source, shard: int, unit: int, error: BadSample) -> Replaced:
        place = source.units.resolve(shard, unit)[0]
        self.replaced += 1
        if self.replaced & (self.replaced - 1) == 0:  # the 1st, 2nd, 4th, ...: never a flood
            print(f"mmpretrain: warning: {error}; replaced ({self.replaced} so far in this worker)", file=sys.stderr, flush=True)
        return record(error, str(source.reader.paths[shard]), source.reader.indexes[shard].key(place))

    def batch(self, slots: Slots, seed: int, epoch: int, augment: bool) -> Batch:
        """The batch of units at positions."""
        examples, found = [], list[Replaced]()
        for position, number, shard, unit, text in zip(*(column.tolist() for column in slots), strict=True):
            draw = PositionDraw(self.sources[number], seed, epoch, position, augment)
            examples.append(self.example(draw, shard, unit, text if text >= 0 else None, found))
        numbers = set(slots.source_P.tolist())
        sources = [self.sources[number] for number in sorted(numbers)]
        made = self.collator.batch(examples, sources[0].preparers)
        return made._replace(source=sources[0].name if len(sources) == 1 else "", replaced=tuple(found))


class StepDataset(Dataset):
    """Item ``(track, epoch, window, batch)`` is what this rank needs for one optimiser step: a tuple of micro-batches."""

    def __init__(self, assembler: Assembler, feed: Feed, rank: int, world: int, accumulate: int) -> None:
        self.assembler, self.feed = assembler, feed
        self.rank, self.world, self.accumulate = rank, world, accumulate

    def __len__(self) -> int:
        return self.feed.steps

    def slots(self, item: Item) -> list[Slots]:
        """The samples of the micro-batches of this rank."""
        track = self.feed.tracks[item.track]
        whole = track.slots(Place(item.epoch, item.window, item.batch))
        return whole.parts(self.rank, self.world, self.accumulate, track.even)

    @working.item
    def __getitem__(self, item: Item) -> tuple[Batch, ...]:
        order, parts = self.feed.tracks[item.track].order, self.slots(item)
        if any(source.reader.is_remote for source in self.assembler.sources):
            self._fetch_ahead(order, item.epoch, np.concatenate([part.position_P for part in parts]))
        return tuple(self.assembler.batch(part, order.seed, item.epoch, augment=True) for part in parts)

    def _fetch_ahead(self, order: Order, epoch: int, positions: np.ndarray) -> None:
        if len(positions):
            for number, shards in order.coming(epoch, int(positions.min())).items():
                self.assembler.sources[number].reader.prefetch(shards)


class ValDataset(Dataset):
    """Item ``i`` is the ``i``-th validation batch of this rank: fixed draws, no augmentation."""

    def __init__(self, assembler: Assembler, seed: int, chosen: np.ndarray, cuts: Sequence[np.ndarray]) -> None:
        self.assembler, self.seed, self.chosen, self.cuts = assembler, seed, chosen, list(cuts)

    def __len__(self) -> int:
        return len(self.cuts)

    @working.item
    def __getitem__(self, item: int) -> Batch:
        positions = self.cuts[item]
        units = self.assembler.sources[0].units
        shards, numbers = np.asarray([units.locate(int(number)) for number in self.chosen[positions]], dtype=np.int64).T
        return self.assembler.batch(
            Slots(positions, np.zeros_like(positions), shards, numbers, np.full_like(positions, -1)), self.seed, -1, augment=False
        )
