"""What a data module reads: its sets, the tokenizer of their texts, and the way from their samples to examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

from mmpretrain.data import answers, codes_info, neighbours, regions_info, seconds, tokenizer_training
from mmpretrain.data.answers import AnswerOptions
from mmpretrain.data.buckets import Buckets
from mmpretrain.data.codes import MAX_KNOWN
from mmpretrain.data.codes_info import CodesInfo
from mmpretrain.data.collate import Collator
from mmpretrain.data.dataset import Source
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.neighbours import NeighbourOptions
from mmpretrain.data.position import PositionedData
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.regions_info import RegionsInfo
from mmpretrain.data.seconds import Second
from mmpretrain.data.tags import Tagger, TagOptions, tagger
from mmpretrain.data.text import TextOptions, Tokenizer
from mmpretrain.data.told import Told
from mmpretrain.data.training_set import TrainingSet
from mmpretrain.data.units import TEXTS, Units
from mmpretrain.types import Preparer, Vocabulary

NO_WORDS = Vocabulary(0, 0, None, None, None, ())  # of data without texts


class ReadingData(PositionedData):
    """The half of ``ShardData`` that knows what is read; the other half knows in what order."""

    set: TrainingSet
    val_sources: dict[str, str | list[str]]
    text: TextOptions
    max_tokens: int
    image: ImageTransform
    tags: TagOptions | None
    answers: AnswerOptions | None
    buckets: Buckets | None
    neighbours: NeighbourOptions
    on_bad: str
    open_reader: Callable[[str | list[str], str], ShardReader]
    preparers: dict[str, Preparer]
    objective_sources: Mapping[str, tuple[str, ...] | None]

    def __init__(self, max_bad_fraction: float) -> None:
        super().__init__(max_bad_fraction)
        self._tokenizer: Tokenizer | None = None
        self._val: dict[str, ShardReader] = {}
        self.regions_info: RegionsInfo | None = None  # what made the regions, known after ``setup``
        self.region_width: int | None = None  # values of a region's feature, where regions are shown; known after ``setup``

    @property
    def reader(self) -> ShardReader:
        """The training samples, by number. Opens (and, once, indexes) the shards."""
        return self.set.reader

    def val_reader(self, name: str) -> ShardReader:
        """The samples of one validation set, by number."""
        if name not in self._val:
            self._val[name] = self.open_reader(self.val_sources[name], "val")
        return self._val[name]

    @property
    def val_names(self) -> tuple[str, ...]:
        """The validation sets, in the order of their loaders."""
        return tuple(self.val_sources)

    @property
    def val_readers(self) -> dict[str, ShardReader]:
        """The samples of every validation set."""
        return {name: self.val_reader(name) for name in self.val_sources}

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Trained at first use where the options ask for it, then cached by the contents of the shards; with the answers to questions. None
        where all sources have ``reads: images``."""
        if self._tokenizer is None and self.set.pictures_alone:
            return None
        if self._tokenizer is None:
            told = Told(self.tagger(self.reader), any("questions" in TEXTS[self.set.text_from(name)] for name in self.set.specs))
            made = tokenizer_training.make(self.text, self.max_tokens, self.reader, told=told)
            self._tokenizer = made if self.answers is None else made.with_answers(answers.make(self.answers, self.reader))
        if self.text.dropout:
            _ = self._tokenizer.dropping  # refused here, not in a worker
        return self._tokenizer

    def adopt(self, tokenizer: Tokenizer) -> None:
        """Use this tokenizer, that of a checkpoint, where the options would train one: other shards must not change what an id means."""
        self._tokenizer = tokenizer.with_max_tokens(self.max_tokens)

    @cached_property
    def codes_info(self) -> CodesInfo | None:
        """What made the image codes of all sets that show them; None where none does.

        Raises:
            DataError: see ``codes_info.check_readers``.
        """
        train, val = (filter(self.set.shows_codes, names) for names in (self.set.specs, self.val_sources))
        return codes_info.check_readers([*map(self.set.reader_of, train), *map(self.val_reader, val)])

    @cached_property
    def shown_regions(self) -> RegionsInfo | None:
        """What made the regions of all training sets that show them; None where none does, or no ``regions.json`` says.

        Raises:
            DataError: see ``regions_info.check_readers``.
        """
        names = [name for name, spec in self.set.specs.items() if spec.reads != "texts" and self.set.shown(name).has_regions]
        return regions_info.check_readers(map(self.set.reader_of, names))

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the tokenizer, empty where there is none; how many image codes the data hold; how many classes and attributes the regions that
        are shown may have."""
        words = NO_WORDS if self.tokenizer is None else self.tokenizer.vocabulary
        found = words._replace(codes=self.codes_info.codes if self.codes_info is not None else 0)
        if (info := self.shown_regions) is None:
            return found
        sizes = (len(info.classes or ()), info.background, len(info.attributes or ()))
        return found._replace(region_classes=sizes[0], region_background=sizes[1], region_attributes=sizes[2])

    @property
    def transform(self) -> ImageTransform:
        """Of pictures; without a generator it is the one of evaluation."""
        return self.image

    @property
    def collator(self) -> Collator:
        """Pads texts and pictures as training does."""
        return Collator(self.vocabulary.pad, self.image.mean, self.image.std)

    @property
    def fingerprint(self) -> str:
        """sha256 of the contents of the training shards."""
        return self.set.fingerprint

    def tagger(self, reader: ShardReader) -> Tagger | None:
        """What makes the tags of these samples; None where texts stand alone.

        Raises:
            DataError: tags are to be made of regions whose classes have no names.
        """
        if self.tags is None:
            return None
        return tagger(self.tags, self.regions_info or regions_info.check_readers([reader]))

    def preparers_of(self, name: str) -> tuple[dict[str, Preparer], frozenset[str]]:
        """The preparers of the objectives that read a source, and what they want beside the usual."""
        readers = self.set.objectives_of(name, self.objective_sources) if name in self.set.specs else set(self.objective_sources)
        preparers = {key: one for key, one in self.preparers.items() if key in readers or key not in self.objective_sources}
        return preparers, frozenset(what for one in preparers.values() for what in getattr(one, "wants", ()))

    def second(self, name: str, units: Units) -> Second | None:
        """How long the second texts of a training source are; None where its texts stand alone, or no batch goes by lengths."""
        if self.buckets is None or units.reads == "images":
            return None
        tagger = self.tagger(units.reader) if units.reads == "pairs" else None
        return seconds.second(units.reader, tagger, units.reads_regions, self.preparers_of(name)[1])

    def source(self, name: str, reader: ShardReader, units: Units) -> Source:
        """The way from the samples of ``reader`` to examples, as the training source ``name`` or, where there is none, as pairs."""
        preparers, wanted = self.preparers_of(name)
        wanted_alike = "neighbours" in wanted and units.reads != "images"
        alike = neighbours.make(reader, units.text_from, self.neighbours) if wanted_alike else None
        way = (self.tokenizer, self.image, self.on_bad, name, preparers, self.region_width, self.tagger(reader), alike)
        return Source(reader, units, *way, self.codes_info.codes if self.codes_info is not None else MAX_KNOWN, self.text.dropout)
