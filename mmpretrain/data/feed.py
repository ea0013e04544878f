"""What a run is fed with: its sources, and the tracks that its batches come from.

One source: one track. ``mix: sample``: one track over an order in which the sources alternate. ``mix: batch``: one track per source, asked
in turn; the cursor knows whose turn it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmpretrain.data.buckets import Buckets, Ruler, check_budget
from mmpretrain.data.draws import seed_of
from mmpretrain.data.errors import DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.mixture import Blend, Interleave
from mmpretrain.data.plan import Plan
from mmpretrain.data.track import BucketTrack, FixedTrack, MixedOrder, Order, SoloOrder, Track
from mmpretrain.data.units import Units


class Part(NamedTuple):
    """One source of a run."""

    name: str  # "" where there is only one, without a name
    units: Units
    share: float = 1.0
    max_epochs: int | None = None
    after: int | None = None  # the part that must have left before this one joins

    @property
    def most(self) -> int | None:
        """Samples after which it leaves a mixture of samples."""
        return None if self.max_epochs is None else self.max_epochs * self.units.total


class Item(NamedTuple):
    """What a worker is told: which batch of which track."""

    track: int
    epoch: int
    window: int = 0
    batch: int = 0


class Feed:
    """Sources and tracks.

    Args:
        parts: the sources; several are a mixture.
        mix: ``sample`` or ``batch``; only a mixture asks.
        batch_size: samples of a global batch.
        seed: of the order and the draws.
        block: shards shuffled together.
        buckets: shape-aware batches; None: batches as the order has them.
        image: the transform, for the shapes.
        max_tokens: longest text, for the shapes.

    Raises:
        DataError: a source too small for a batch, or sources that do not fit together.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        mix: str,
        batch_size: int,
        seed: int,
        block: int,
        buckets: Buckets | None,
        image: ImageTransform,
        max_tokens: int,
    ) -> None:
        self.parts, self.batch_size, self.seed, self.buckets = list(parts), batch_size, seed, buckets
        self.mix = mix if len(self.parts) > 1 or self.parts[0].name else ""
        self.ruler = Ruler(buckets, image, max_tokens, [part.units for part in self.parts]) if buckets is not None else None
        self.plans = [self._plan(part, block) for part in self.parts]
        self._interleaves: dict[tuple[int, ...], Interleave] = {}
        if self.mix == "sample":
            self._same_kind()
            self.rebase((0, 0), [0] * len(self.parts))
        else:
            self._endless()
            self.tracks: list[Track] = [self._track(SoloOrder(plan, number)) for number, plan in enumerate(self.plans)]

    def _plan(self, part: Part, block: int) -> Plan:
        seed = seed_of(self.seed, f"source/{part.name}") if part.name else self.seed
        try:
            return Plan(part.units.sizes, 1 if self.mix == "sample" else self.batch_size, seed, block)
        except DataError as error:
            raise (DataError(f"{error}; source {part.name!r} of data.train") if part.name else error) from None

    def _track(self, order: Order) -> Track:
        if self.buckets is None:
            return FixedTrack(order, self.batch_size)
        assert self.ruler is not None
        return BucketTrack(order, self.batch_size, self.buckets, self.ruler)

    def _same_kind(self) -> None:
        kinds = {part.units.kind: part.name for part in self.parts}
        if len(kinds) > 1:
            listed = " and ".join(f"{reads} of {name!r}" for reads, name in kinds.items())
            raise DataError(f"data.mix=sample would put {listed} into one batch; set data.mix=batch, which gives every batch one source")

    def _endless(self) -> None:
        if self.mix and all(part.max_epochs is not None for part in self.parts):
            Blend([part.share for part in self.parts], [part.most for part in self.parts])  # says so

    def rebase(self, start: tuple[int, int], counts: Sequence[int]) -> None:
        """Begin the mixture of samples at (epoch, position) ``start``, the sources having given ``counts`` samples before."""
        after = [part.after for part in self.parts]
        blend = Blend([part.share for part in self.parts], [part.most for part in self.parts], counts, after)
        self.mixed = MixedOrder(self.plans, blend, self.batch_size, self.seed, start)
        self.tracks = [self._track(self.mixed)]

    @property
    def names(self) -> tuple[str, ...]:
        """The sources of a mixture; () where there is only one without a name."""
        return tuple(part.name for part in self.parts) if self.mix else ()

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch: exact for one source and batches of one size; nominal for mixtures (all sources once over, if they
        were asked by their sizes); an estimate with a token budget."""
        return sum(track.steps for track in self.tracks)

    @property
    def exact(self) -> bool:
        """Whether an epoch of the one source has ``steps`` batches."""
        return not self.mix and self.tracks[0].exact

    @property
    def tokens(self) -> int | None:
        """The token budget of a batch."""
        return self.buckets.tokens if self.buckets is not None else None

    def dropped(self) -> dict[str, int]:
        """Samples at the end of an epoch that fill no batch, by source."""
        # not strict: a mixture by samples has the names of its sources and one track
        return {name: track.dropped for name, track in zip(self.names or ("",), self.tracks, strict=False) if track.dropped}

    def turn(self, active: tuple[int, ...], turn: int) -> int:
        """Whose turn it is among the tracks that still take part."""
        if active not in self._interleaves:
            self._interleaves[active] = Interleave([self.parts[number].share for number in active])
        sources, _ = self._interleaves[active].at(np.asarray([turn]))
        return active[int(sources[0])]

    def check(self, world: int, accumulate: int) -> None:
        """That every batch can be cut for these ranks and micro-batches.

        Raises:
            DataError: naming the remedy.
        """
        parts = world * accumulate
        if self.buckets is None or self.ruler is None:
            return
        check_budget(self.buckets, self.ruler.longest, parts)
        smallest = min(track.usable for track in self.tracks if isinstance(track, BucketTrack))
        if smallest < parts:
            raise DataError(f"data: {smallest} usable samples cannot be cut into {world} ranks x {accumulate} micro-batches")
