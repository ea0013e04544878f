"""The order of an epoch as a pure function of (seed, epoch): no buffer, no state but a count of samples.

Shards are permuted; blocks of ``block`` neighbouring shards are shuffled together, each by its own generator, when a position in it is
first asked for. Global batch ``g`` is positions ``[g * batch_size, (g + 1) * batch_size)``; ranks, micro-batches and workers are slices of
it, so that none of them changes what a batch holds. A position is used once in an epoch; what does not fill a batch at the end is dropped
and counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from mmpretrain.data.errors import DataError

_KEPT = 3  # shuffled blocks in memory


class Plan:
    """Which unit stands at which position.

    Args:
        sizes: units (samples, or sample-text pairs) of each shard.
        batch_size: positions per optimiser step, over all ranks.
        seed: of the order.
        block: shards shuffled together.

    Raises:
        DataError: fewer units than one batch.
    """

    def __init__(self, sizes: Sequence[int] | np.ndarray, batch_size: int, seed: int, block: int = 16) -> None:
        if batch_size < 1 or block < 1 or seed < 0:
            raise DataError(f"data: batch_size {batch_size} and block {block} must be at least 1, seed {seed} at least 0")
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.batch_size, self.seed, self.block = batch_size, seed, block
        self.total = int(self.sizes.sum())
        self.steps, self.dropped = divmod(self.total, batch_size)
        if self.steps == 0:
            raise DataError(f"data: {self.total} usable samples do not fill one batch of {batch_size}; lower data.batch_size")
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_epochs": OrderedDict(), "_blocks": OrderedDict()}

    def locate(self, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and unit within it of each position: two int64 arrays of the shape of ``positions``."""
        positions = np.asarray(positions, dtype=np.int64)
        if positions.size and (positions.min() < 0 or positions.max() >= self.total):
            raise IndexError(f"positions run from 0 to {self.total - 1}")
        shards, ends = self._shards(epoch)
        bounds = ends[self.block - 1 :: self.block]
        blocks = np.searchsorted(bounds, positions, side="right")
        shard, unit = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(blocks):
            chosen = blocks == number
            first = number * self.block
            start = ends[first - 1] if first else 0
            local = self._shuffled(epoch, int(number), ends)[positions[chosen] - start] + start
            slot = np.searchsorted(ends, local, side="right")
            shard[chosen] = shards[slot]
            unit[chosen] = local - (ends[slot] - self.sizes[shards[slot]])
        return shard, unit

    def coming(self, epoch: int, position: int) -> list[int]:
        """The shards that a position of an epoch is shuffled with, then those of the next block, be it in the next epoch."""
        shards, ends = self._shards(epoch)
        first = int(np.searchsorted(ends[self.block - 1 :: self.block], position, side="right")) * self.block
        found = shards[first : first + 2 * self.block].tolist()
        if first + self.block >= len(shards):
            found += [shard for shard in self._shards(epoch + 1)[0][: self.block].tolist() if shard not in found]
        return found

    def _shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch not in self._epochs:
            order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.sizes))
            self._epochs[epoch] = (order, np.cumsum(self.sizes[order]))
            while len(self._epochs) > 2:  # a batch of a mixture may span two
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _shuffled(self, epoch: int, number: int, ends: np.ndarray) -> np.ndarray:
        key = (epoch, number)
        if key not in self._blocks:
            first, last = number * self.block, min((number + 1) * self.block, len(ends))
            length = int(ends[last - 1] - (ends[first - 1] if first else 0))
            self._blocks[key] = np.random.Generator(np.random.PCG64([self.seed, epoch, number + 1])).permutation(length)
            while len(self._blocks) > _KEPT:
                self._blocks.popitem(last=False)
        return self._blocks[key]


def micro_batch(batch_size: int, world: int, accumulate: int) -> int:
    """Samples of one micro-batch on one rank.

    Raises:
        DataError: the global batch cannot be cut evenly.
    """
    if world < 1 or accumulate < 1 or batch_size % (world * accumulate):
        near = max(world * accumulate, batch_size // (world * accumulate) * world * accumulate)
        raise DataError(
            f"data.batch_size={batch_size} is the batch of all ranks; it cannot be cut into {world} ranks x {accumulate} micro-batches; "
            f"take a multiple of {world * accumulate}, such as {near}"
        )
    return batch_size // (world * accumulate)


def slices(step: int, batch_size: int, rank: int, world: int, accumulate: int) -> list[np.ndarray]:
    """Positions of the micro-batches of one rank in global batch ``step``: ``accumulate`` int64 arrays."""
    micro = micro_batch(batch_size, world, accumulate)
    start = step * batch_size
    return [np.arange(micro, dtype=np.int64) + start + (a * world + rank) * micro for a in range(accumulate)]


def val_slices(total: int, batch_size: int, rank: int, world: int) -> list[np.ndarray]:
    """Positions of the validation batches of one rank: every position once over all ranks, equally many batches on every rank, none empty.

    Where ``batch_size`` is 1 and the ranks do not divide ``total``, some batches hold two.

    Raises:
        DataError: fewer samples than ranks.
    """
    if total < world:
        raise DataError(f"data: {total} validation samples cannot be shared by {world} ranks; give a larger validation set")
    count = min(-(-total // (batch_size * world)), total // world)
    chunks = np.array_split(np.arange(total, dtype=np.int64), count * world)
    return [chunks[number * world + rank] for number in range(count)]


def spread(total: int, count: int) -> np.ndarray:
    """``count`` of ``total`` numbers, evenly spread, ascending: int64."""
    return np.arange(count, dtype=np.int64) * total // count
