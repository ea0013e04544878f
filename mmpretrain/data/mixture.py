"""Several sources in one run: how often each is asked, as a pure function of the position.

The rule is that of the largest deficit: at every turn the source that is furthest behind its share is next. With shares that are whole
numbers of a period the rule repeats itself exactly, so that one period, worked out once, answers for every position: nothing is replayed.
A source is never more than one turn ahead of its share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np

from mmpretrain.data.errors import DataError
from mmpretrain.data.visual import SHOWS, RegionOptions

PERIOD = 1 << 16  # longest period; a share is at least one part of it
READS = ("pairs", "texts", "images")


@dataclass(frozen=True)
class TrainSource:
    """One source of a mixture.

    Args:
        sources: folders, tar files, patterns, as for ``data.train``.
        weight: its part of the samples (with ``mix: batch`` of the batches, whose numbers of samples differ under a token budget), relative
            to the other weights; None for all sources: by their sizes and ``data.temperature``.
        max_epochs: passes after which the source leaves the mixture and the others share its part; None: no limit.
        after: the source that must have left before this one joins: stages of a run (ImageBERT); None: it takes part from the start.
        reads: ``pairs``: samples with a picture and a text; ``texts`` or ``images``: this alone is needed and read.
        text_from: ``captions``, ``statements``, ``questions`` or ``captions+questions``; None: as ``data.text_from``.
        captions: ``sample`` or ``all``; None: as ``data.captions``.
        show: ``image``, ``regions``, ``both``, ``codes`` or ``image+codes``; None: as ``data.show``.
        regions: which regions; None: as ``data.regions``.
        joined: of ``reads: texts``: every text is filled up with those of the samples behind it to ``data.max_tokens``, without special
            tokens (VL-BERT).

    Raises:
        DataError: an option out of its range.
    """

    sources: str | list[str]
    weight: float | None = None
    max_epochs: int | None = None
    after: str | None = None
    reads: Literal["pairs", "texts", "images"] = "pairs"
    text_from: Literal["captions", "statements", "questions", "captions+questions"] | None = None
    captions: Literal["sample", "all"] | None = None
    show: Literal["image", "regions", "both", "codes", "image+codes"] | None = None
    regions: RegionOptions | None = None
    joined: bool = False

    def __post_init__(self) -> None:
        if self.weight is not None and not (self.weight > 0 and math.isfinite(self.weight)):
            raise DataError(f"data.train: weight {self.weight} of {self.sources!r} must be positive; leave the source out instead")
        if self.max_epochs is not None and self.max_epochs < 1:
            raise DataError(f"data.train: max_epochs {self.max_epochs} of {self.sources!r} must be at least 1")
        if isinstance(self.regions, Mapping):  # of a saved configuration
            object.__setattr__(self, "regions", RegionOptions(**self.regions))
        if self.show is not None and self.show not in SHOWS:
            raise DataError(f"data.train: show {self.show!r} of {self.sources!r}; take one of {', '.join(SHOWS)}")
        if self.reads not in READS:
            raise DataError(f"data.train: reads {self.reads!r} of {self.sources!r}; take one of {', '.join(READS)}")
        if self.joined and self.reads != "texts":
            raise DataError(f"data.train: joined of {self.sources!r} is for reads: texts; a picture has texts of its own")


def shares(specs: Mapping[str, TrainSource], sizes: Sequence[int], temperature: float = 1.0) -> tuple[float, ...]:
    """The part of each source; they sum to 1.

    Args:
        specs: name -> source.
        sizes: units of an epoch of each, in the same order.
        temperature: without weights, sizes ** (1 / temperature) are the weights: 1 is proportional, more is more even.

    Raises:
        DataError: weights for some sources only, or a temperature beside weights.
    """
    without = [name for name, spec in specs.items() if spec.weight is None]
    if without and len(without) < len(specs):
        raise DataError(f"data.train: {', '.join(without)} have no weight and others have; give a weight to all sources or to none")
    if temperature <= 0 or not math.isfinite(temperature):
        raise DataError(f"data.temperature={temperature} must be positive")
    if not without and temperature != 1.0:
        raise DataError(f"data.temperature={temperature} makes weights of sizes, but the sources of data.train have weights; leave one out")
    weights = [size ** (1 / temperature) for size in sizes] if without else [float(spec.weight or 0) for spec in specs.values()]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def stages(specs: Mapping[str, TrainSource]) -> tuple[int | None, ...]:
    """The number of the source that each one waits for, None where it waits for none.

    Raises:
        DataError: a source waits for one that does not exist, never leaves, or waits for it in turn.
    """
    names = list(specs)
    for name, spec in specs.items():
        seen, one = {name}, spec.after
        while one is not None:
            if one not in specs:
                raise DataError(f"data.train: {name!r} waits for {one!r} (after), which is none of {', '.join(specs)}")
            if one in seen:
                raise DataError(f"data.train: {name!r} and {one!r} wait for each other (after); one must take part from the start")
            if specs[one].max_epochs is None:
                raise DataError(f"data.train: {name!r} waits for {one!r} (after), which never leaves; give it max_epochs")
            seen.add(one)
            one = specs[one].after
    return tuple(None if spec.after is None else names.index(spec.after) for spec in specs.values())


def quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Turns of each source in a period: exact where the weights allow a period of at most ``PERIOD``, else rounded (at least one)."""
    total = math.fsum(weights)
    exact = [Fraction(weight / total).limit_denominator(PERIOD) for weight in weights]
    period = math.lcm(*(part.denominator for part in exact))
    if period <= PERIOD and sum(exact) == 1 and all(exact):
        return tuple(int(part * period) for part in exact)
    ideal = [weight / total * PERIOD for weight in weights]
    counts = [max(1, math.floor(part)) for part in ideal]
    for source in sorted(range(len(ideal)), key=lambda k: counts[k] - ideal[k])[: max(0, PERIOD - sum(counts))]:
        counts[source] += 1
    return tuple(counts)


class Interleave:
    """The endless sequence of sources with these weights.

    Args:
        weights: positive, one per source.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.quotas = np.asarray(quotas(weights), dtype=np.int64)
        self.period = int(self.quotas.sum())
        self._pattern = np.empty(self.period, dtype=np.int32)
        taken, due = np.zeros(len(self.quotas), dtype=np.int64), np.zeros(len(self.quotas), dtype=np.int64)
        for turn in range(self.period):
            due += self.quotas
            source = int(np.argmax(due - taken))
            self._pattern[turn] = source
            taken[source] += self.period  # deficits times the period: whole numbers, the same on every machine
        self._turns = [np.flatnonzero(self._pattern == source) for source in range(len(self.quotas))]
        self._rank = np.empty(self.period, dtype=np.int64)
        for turns in self._turns:
            self._rank[turns] = np.arange(len(turns))

    def at(self, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, how often it was asked before) of each turn: two int64 arrays."""
        periods, rest = np.divmod(np.asarray(turns, dtype=np.int64), self.period)
        sources = self._pattern[rest].astype(np.int64)
        return sources, periods * self.quotas[sources] + self._rank[rest]

    def counts(self, turns: int) -> np.ndarray:
        """How often each source is asked in the first ``turns`` turns: int64."""
        periods, rest = divmod(turns, self.period)
        return periods * self.quotas + np.asarray([np.searchsorted(own, rest) for own in self._turns], dtype=np.int64)

    def turn(self, source: int, asked: int) -> int:
        """The turn at which ``source`` is asked after it was asked ``asked`` times."""
        periods, rest = divmod(asked, int(self.quotas[source]))
        return periods * self.period + int(self._turns[source][rest])


class _Segment(NamedTuple):
    """A stretch of turns with the same sources."""

    start: int
    active: np.ndarray  # int64: sources that still take part
    interleave: Interleave
    counts: np.ndarray  # int64: samples of every source before it


class Blend:
    """A sequence of sources in which some leave when they have given all that they may.

    Args:
        weights: of the sources.
        most: samples after which a source leaves; None: never. At least one source stays.
        counts: samples that each has given before the first turn.
        after: the source that must have left before this one joins; None: none waits.

    Raises:
        DataError: every source may leave.
    """

    def __init__(
        self,
        weights: Sequence[float],
        most: Sequence[int | None],
        counts: Sequence[int] | None = None,
        after: Sequence[int | None] | None = None,
    ) -> None:
        if all(one is not None for one in most):
            raise DataError("data.train: every source has max_epochs; one must go on without it, trainer.max_steps ends the run")
        before = np.asarray([0] * len(weights) if counts is None else counts, dtype=np.int64)
        self.segments: list[_Segment] = []
        start = 0
        while True:
            left = {k for k, one in enumerate(most) if one is not None and before[k] >= one}
            waits = [after is not None and after[k] is not None and after[k] not in left for k in range(len(most))]
            active = np.asarray([k for k in range(len(most)) if k not in left and not waits[k]], dtype=np.int64)
            made = Interleave([weights[k] for k in active])
            self.segments.append(_Segment(start, active, made, before))
            ends = [made.turn(place, most[k] - int(before[k]) - 1) + 1 for place, k in enumerate(active.tolist()) if most[k] is not None]
            if not ends:
                break
            before = before.copy()
            before[active] += made.counts(min(ends))
            start += min(ends)
        self._starts = np.asarray([one.start for one in self.segments], dtype=np.int64)

    def at(self, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, samples that it gave before) of each turn: two int64 arrays."""
        turns = np.asarray(turns, dtype=np.int64)
        sources, numbers = np.empty_like(turns), np.empty_like(turns)
        which = np.searchsorted(self._starts, turns, side="right") - 1
        for number in np.unique(which):
            chosen, segment = which == number, self.segments[number]
            places, asked = segment.interleave.at(turns[chosen] - segment.start)
            sources[chosen] = segment.active[places]
            numbers[chosen] = segment.counts[sources[chosen]] + asked
        return sources, numbers

    def counts(self, turns: int) -> np.ndarray:
        """Samples that each source has given before turn ``turns``, those before the first turn included: int64."""
        segment = self.segments[int(np.searchsorted(self._starts, turns, side="right")) - 1]
        counts = segment.counts.copy()
        counts[segment.active] += segment.interleave.counts(turns - segment.start)
        return counts
