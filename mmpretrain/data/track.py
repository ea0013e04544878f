"""Tracks: the global batches of an order, one after another. Each is a pure function of (epoch, window, number in the window).

``FixedTrack`` cuts the order as it stands (every window is one batch). ``BucketTrack`` re-orders inside a window by shape. What comes after
a batch follows from its place alone, so that a position is three small numbers however far a run has come.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple, Protocol

import numpy as np

from mmpretrain.data.buckets import Buckets, Ruler, ends_by_tokens, ordered
from mmpretrain.data.draws import generator, keys
from mmpretrain.data.mixture import Blend
from mmpretrain.data.plan import Plan, slices

_KEPT = 2  # windows in memory
_PEEK = 1024  # positions in which a source of a mixture that is to be fetched ahead has its next sample
_COUNTED = 16  # windows that an estimate of the length of an epoch is made from


class Place(NamedTuple):
    """Where a track is."""

    epoch: int
    window: int = 0
    batch: int = 0


class Slots(NamedTuple):
    """The samples of a global batch, or a part of it: int64 (P,) each."""

    position_P: np.ndarray  # in the epoch: the root of every draw
    source_P: np.ndarray
    shard_P: np.ndarray
    unit_P: np.ndarray
    text_P: np.ndarray  # the number of the text that is shown; -1: it is drawn, or the sample has none

    def take(self, rows: np.ndarray) -> Slots:
        return Slots(*(column[rows] for column in self))

    def parts(self, rank: int, world: int, accumulate: int, even: bool) -> list[Slots]:
        """The micro-batches of one rank. ``even``: neighbours go to different ranks, so that all have like lengths, and the numbers of
        samples differ by one at most; else consecutive slices of equal size."""
        size, count = len(self.position_P), world * accumulate
        if not even:
            return [self.take(rows) for rows in slices(0, size, rank, world, accumulate)]
        return [self.take(np.arange(a * world + rank, size, count)) for a in range(accumulate)]


class Order(Protocol):
    """Which unit stands at which position of an epoch."""

    seed: int  # of the draws
    total: int  # positions of an epoch

    def slots(self, epoch: int, positions: np.ndarray) -> Slots: ...

    def coming(self, epoch: int, position: int) -> dict[int, list[int]]:
        """Source -> the shards that positions from this one on are read from, as far as it is worth fetching them."""
        ...


class SoloOrder:
    """The order of one source."""

    def __init__(self, plan: Plan, source: int = 0) -> None:
        self.plan, self.source, self.seed, self.total = plan, source, plan.seed, plan.total

    def slots(self, epoch: int, positions: np.ndarray) -> Slots:
        shards, units = self.plan.locate(epoch, positions)
        return Slots(positions, np.full_like(positions, self.source), shards, units, np.full_like(positions, -1))

    def coming(self, epoch: int, position: int) -> dict[int, list[int]]:
        return {self.source: self.plan.coming(epoch, position)}


class MixedOrder:
    """Several sources, sample by sample. An epoch is nominal: as many positions as all sources have together, in whole batches; each source
    runs through its own epochs, and none of its samples is left out or comes twice before all others came.

    Args:
        plans: of the sources.
        blend: the sequence of sources from ``start`` on.
        batch_size: positions of a batch.
        seed: of the draws.
        start: (epoch, position) at which the blend begins.
    """

    def __init__(self, plans: list[Plan], blend: Blend, batch_size: int, seed: int, start: tuple[int, int] = (0, 0)) -> None:
        self.plans, self.blend, self.seed, self.start = plans, blend, seed, start
        self.total = max(1, sum(plan.total for plan in plans) // batch_size) * batch_size

    def turn(self, epoch: int, position: int) -> int:
        """Turn of the blend at a position."""
        return (epoch - self.start[0]) * self.total + position - self.start[1]

    def slots(self, epoch: int, positions: np.ndarray) -> Slots:
        sources, numbers = self.blend.at(positions + self.turn(epoch, 0))
        shards, units = np.empty_like(positions), np.empty_like(positions)
        for source in np.unique(sources).tolist():
            plan, own = self.plans[source], sources == source
            epochs, places = np.divmod(numbers[own], plan.total)
            found = np.empty((2, len(places)), dtype=np.int64)
            for one in np.unique(epochs).tolist():
                now = epochs == one
                found[:, now] = plan.locate(one, places[now])
            shards[own], units[own] = found
        return Slots(positions, sources, shards, units, np.full_like(positions, -1))

    def coming(self, epoch: int, position: int) -> dict[int, list[int]]:
        sources, numbers = self.blend.at(np.arange(position, position + _PEEK, dtype=np.int64) + self.turn(epoch, 0))
        found = {}
        for source in np.unique(sources).tolist():
            plan = self.plans[source]
            found[source] = plan.coming(*divmod(int(numbers[sources == source][0]), plan.total))
        return found


class FixedTrack:
    """Batches of one size, cut from the order as it stands.

    Args:
        order: of the samples.
        batch_size: samples of a batch.
    """

    even = False
    exact = True  # whether every epoch has ``steps`` batches

    def __init__(self, order: Order, batch_size: int) -> None:
        self.order, self.batch_size = order, batch_size
        self.steps, self.dropped = divmod(order.total, batch_size)

    def count(self, epoch: int, window: int) -> int:
        """Batches of a window."""
        return 1

    def samples(self, place: Place) -> int:
        """Samples of the batch at a place."""
        return self.batch_size

    def slots(self, place: Place) -> Slots:
        """The batch at a place."""
        start = place.window * self.batch_size
        return self.order.slots(place.epoch, np.arange(start, start + self.batch_size, dtype=np.int64))

    def after(self, place: Place) -> Place:
        """The place after a place; that of an epoch's end is the start of the next epoch."""
        return Place(place.epoch, place.window + 1) if place.window + 1 < self.steps else Place(place.epoch + 1)

    def settle(self, epoch: int, samples: int) -> Place:
        """The first place at which ``samples`` samples of an epoch, or a few more, are behind."""
        window = -(-samples // self.batch_size)
        return Place(epoch, window) if window < self.steps else Place(epoch + 1)


class _Window(NamedTuple):
    slots: Slots
    ends: np.ndarray


class BucketTrack:
    """Batches of like shape inside a window of the order.

    Args:
        order: of the samples.
        batch_size: samples of a batch without a token budget; a window has ``options.window`` times as many.
        options: of the buckets.
        ruler: of the same sources as the order.
    """

    def __init__(self, order: Order, batch_size: int, options: Buckets, ruler: Ruler) -> None:
        self.order, self.batch_size, self.options, self.ruler = order, batch_size, options, ruler
        self.even = self.options.tokens is not None
        self.size = options.window * batch_size
        self.usable = order.total if self.even else order.total // batch_size * batch_size
        self.dropped = order.total - self.usable
        self.windows = max(1, self.usable // self.size if self.even else -(-self.usable // self.size))
        self._made: OrderedDict[tuple[int, int], _Window] = OrderedDict()
        self.exact = not self.even
        self.steps = self._estimate() if self.even else self.usable // batch_size

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_made": OrderedDict()}

    def _estimate(self) -> int:
        """Batches of an epoch, from the first epoch's on at most ``_COUNTED`` windows."""
        chosen = np.unique(np.linspace(0, self.windows - 1, min(self.windows, _COUNTED)).round().astype(np.int64))
        found = sum(self.count(0, window) for window in chosen.tolist())
        self._made.clear()
        return max(1, round(found * self.windows / len(chosen)))

    def _window(self, epoch: int, window: int) -> _Window:
        if (epoch, window) not in self._made:
            self._made[epoch, window] = self._make(epoch, window)
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end((epoch, window))
        return self._made[epoch, window]

    def _make(self, epoch: int, window: int) -> _Window:
        start = window * self.size
        stop = self.usable if window == self.windows - 1 else start + self.size
        positions = np.arange(start, stop, dtype=np.int64)
        slots = self.order.slots(epoch, positions)
        shapes, text_P = self.ruler.measure(slots.source_P, slots.shard_P, slots.unit_P, keys(self.order.seed, epoch, positions))
        order = ordered(shapes)
        if self.options.tokens is None:
            ends = np.arange(self.batch_size, len(order) + 1, self.batch_size, dtype=np.int64)
        else:
            ends = ends_by_tokens(shapes.cost_P[order], self.options.tokens, self.options.multiple)
        batches = np.split(order, ends[:-1])
        shuffled = generator(self.order.seed, epoch, window, name="buckets").permutation(len(batches)).tolist()
        rows = np.concatenate([batches[number] for number in shuffled])
        taken = Slots(positions, slots.source_P[rows], slots.shard_P[rows], slots.unit_P[rows], text_P[rows])
        return _Window(taken, np.cumsum([len(batches[number]) for number in shuffled]))

    def count(self, epoch: int, window: int) -> int:
        """Batches of a window."""
        if self.options.tokens is None:
            return (min(self.usable, (window + 1) * self.size) - window * self.size) // self.batch_size
        return len(self._window(epoch, window).ends)

    def _bounds(self, place: Place) -> tuple[int, int]:
        ends = self._window(place.epoch, place.window).ends
        return int(ends[place.batch - 1]) if place.batch else 0, int(ends[place.batch])

    def samples(self, place: Place) -> int:
        """Samples of the batch at a place."""
        if self.options.tokens is None:
            return self.batch_size
        start, stop = self._bounds(place)
        return stop - start

    def slots(self, place: Place) -> Slots:
        """The batch at a place."""
        start, stop = self._bounds(place)
        return self._window(place.epoch, place.window).slots.take(np.arange(start, stop))

    def after(self, place: Place) -> Place:
        """The place after a place; that of an epoch's end is the start of the next epoch."""
        if place.batch + 1 < self.count(place.epoch, place.window):
            return place._replace(batch=place.batch + 1)
        return Place(place.epoch, place.window + 1) if place.window + 1 < self.windows else Place(place.epoch + 1)

    def settle(self, epoch: int, samples: int) -> Place:
        """The first place at which ``samples`` samples of an epoch, or a few more, are behind: the start of a window."""
        window = -(-samples // self.size)
        return Place(epoch, window) if window < self.windows else Place(epoch + 1)


Track = FixedTrack | BucketTrack
