"""What texts a run tells of its samples beside their captions and statements, so that the tokenizer learns their words, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mmpretrain.data.errors import BadSample
from mmpretrain.data.tags import Tagger
from mmpretrain.types import Sample


class Told(NamedTuple):
    """``tagger``: texts are told with tags."""

    tagger: Tagger | None = None

    @property
    def facts(self) -> list[Any]:
        """What the corpus of the tokenizer depends on; [] where captions and statements are all."""
        return [] if self.tagger is None else [vars(self.tagger.options), self.tagger.classes, self.tagger.background]

    def of(self, sample: Sample) -> Iterator[str]:
        """The further texts of a sample, without those that hang on its regions."""
        try:
            if self.tagger is not None and (tags := self.tagger.tags(sample)):
                yield tags
        except BadSample:
            return  # named when the sample is shown

    def names(self, times: int) -> Iterator[str]:
        """The names that regions may give, each so many times."""
        if self.tagger is not None and self.tagger.reads_regions:
            for name in self.tagger.classes or ():
                yield from [name] * times
