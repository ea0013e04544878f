"""Indexes out of thin air and feeds over them: the plan is tested without a byte of data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmpretrain.data.buckets import Buckets
from mmpretrain.data.cursor import Cursor
from mmpretrain.data.dataset import StepDataset
from mmpretrain.data.feed import Feed, Item, Part
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.index import ShardIndex
from mmpretrain.data.loaders import StepSampler
from mmpretrain.data.units import Units

SIZES = ((240, 320), (320, 240), (480, 640), (100, 600), (300, 300))


def index(samples: int, seed: int = 0, name: str = "0.tar", captions: int = 2) -> ShardIndex:
    """The index of a shard of pictures of five sizes with captions of many lengths."""
    rng = np.random.default_rng(seed)
    counts = np.full(samples, captions, dtype=np.uint16)
    sizes = np.asarray(SIZES, dtype=np.uint32)[rng.integers(len(SIZES), size=samples)].reshape(-1, 2)
    none, ones = np.zeros(samples, dtype=np.uint16), np.ones(samples, dtype=np.uint16)
    keys = "".join(f"{number:07d}" for number in range(samples)).encode()
    fields: list[Any] = [Path("/nowhere") / name, np.frombuffer(keys, dtype=np.uint8), np.arange(7, 7 * samples + 7, 7)]
    fields += [np.zeros(samples + 1, dtype=np.int64), *(np.zeros(0, dtype=np.int64) for _ in range(4))]
    fields += [counts, none, ones, none, none, sizes[:, 0], sizes[:, 1]]
    fields += [rng.integers(10, 200, size=captions * samples).astype(np.uint16), none, none, none, none]
    return ShardIndex(*fields, ("png", "txt"), 0, f"digest {seed} {samples}", {}, (), 0)


class Shelf:
    """What ``Units`` asks of a reader."""

    def __init__(self, sizes: Sequence[int], seed: int = 0, captions: int = 2) -> None:
        self.indexes = [index(size, 1000 * seed + number, f"{number}.tar", captions) for number, size in enumerate(sizes)]
        self.paths = tuple(one.path for one in self.indexes)

    def __len__(self) -> int:
        return sum(map(len, self.indexes))


def units(sizes: Sequence[int], seed: int = 0, **options: Any) -> Units:
    return Units(Shelf(sizes, seed), **options)  # type: ignore[arg-type]


def part(name: str, sizes: Sequence[int], share: float, max_epochs: int | None = None, **options: Any) -> Part:
    return Part(name, units(sizes, seed=len(name), **options), share, max_epochs)


def feed(parts: Sequence[int] | Sequence[Part], batch: int = 64, mix: str = "sample", buckets: Buckets | None = None, **more: Any) -> Feed:
    """Of shard sizes, or of parts."""
    listed = [one if isinstance(one, Part) else None for one in parts]
    found = list(parts) if listed[0] is not None else [Part("", units(parts))]  # type: ignore[arg-type]
    return Feed(
        found, mix, batch, **{"seed": 3, "block": 4, "image": ImageTransform("vilt", 64, 16), "max_tokens": 40, **more}, buckets=buckets
    )


def ids(made: Feed, items: Sequence[Item], rank: int = 0, world: int = 1, accumulate: int = 1) -> list[list[tuple[tuple[int, ...], ...]]]:
    """For every item, for every micro-batch: its samples as (position, source, shard, unit, text)."""
    dataset = StepDataset(None, made, rank, world, accumulate)  # type: ignore[arg-type]
    return [[tuple(zip(*(column.tolist() for column in one), strict=True)) for one in dataset.slots(item)] for item in items]


def batches(made: Feed, items: Sequence[Item], world: int = 1, accumulate: int = 1) -> list[list[tuple[int, ...]]]:
    """The global batches, put together from all ranks, in the order of positions."""
    ranks = [ids(made, items, rank, world, accumulate) for rank in range(world)]
    return [sorted(row for rank in ranks for part in rank[step] for row in part) for step in range(len(items))]


def ahead(cursor: Cursor, steps: int | None = None) -> list[Item]:
    """The next items, as a loader would ask for them."""
    return list(StepSampler(cursor, steps))


def twice(rows: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """(source, shard, unit) that come more than once."""
    return [row for row, count in Counter(row[1:4] for row in rows).items() if count > 1]
