"""The order of an epoch: pure, complete, independent of ranks, micro-batches and workers."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from mmpretrain.data.errors import DataError
from mmpretrain.data.plan import Plan, micro_batch, slices, val_slices

LAYOUTS = [(1, 1), (1, 2), (2, 1), (2, 3), (3, 2), (4, 5), (8, 5), (5, 8), (10, 4), (20, 3), (60, 2), (120, 1), (1, 120), (64, 1)]


def units(plan: Plan, epoch: int, positions: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(*(a.tolist() for a in plan.locate(epoch, positions)), strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_same_global_batches(layout):
    world, accumulate = layout
    size = 64 if world == 64 else 120
    plan = Plan([50, 7, 0, 130, 61, 200], size, seed=3, block=2)
    whole = units(plan, 1, np.arange(size, 2 * size))
    found = [None] * size
    for rank in range(world):
        for positions in slices(1, size, rank, world, accumulate):
            for position, unit in zip(positions, units(plan, 1, positions), strict=True):
                assert found[position - size] is None
                found[position - size] = unit
    assert found == whole


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_an_epoch_has_every_unit_once_and_differs_from_the_next(block):
    sizes = [5, 0, 1, 17, 3, 9]
    plan = Plan(sizes, 4, seed=1, block=block)
    everything = {(shard, unit) for shard, size in enumerate(sizes) for unit in range(size)}
    orders = [units(plan, epoch, np.arange(plan.total)) for epoch in range(3)]
    assert all(len(order) == len(set(order)) and set(order) == everything for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders[1] == units(Plan(sizes, 4, seed=1, block=block), 1, np.arange(plan.total))
    assert orders[0] != units(Plan(sizes, 4, seed=2, block=block), 0, np.arange(plan.total))


def test_random_shard_sizes_give_whole_epochs():
    rng = np.random.default_rng(0)
    for _ in range(30):
        sizes = rng.integers(0, 40, size=int(rng.integers(1, 30))).tolist()
        if sum(sizes) < 8:
            continue
        plan = Plan(sizes, 8, seed=int(rng.integers(100)), block=int(rng.integers(1, 8)))
        assert plan.steps * 8 + plan.dropped == sum(sizes) and plan.dropped < 8
        assert len(set(units(plan, 5, np.arange(plan.total)))) == plan.total


def test_blocks_mix_their_shards_and_only_them():
    plan = Plan([10] * 8, 8, seed=0, block=4)
    shards, _ = plan.locate(0, np.arange(80))
    assert len(set(shards[:40].tolist())) == 4 and not set(shards[:40].tolist()) & set(shards[40:].tolist())
    assert len(set(shards[:12].tolist())) > 2


def test_any_position_is_found_without_walking_there():
    plan = Plan([10_000] * 10_000, 4096, seed=0, block=16)  # 10^8 units
    began = time.thread_time()
    first = units(plan, 3, np.arange(4096) + 20_000 * 4096)
    assert time.thread_time() - began < 1.0  # the design's bound; it takes milliseconds
    assert first == units(Plan([10_000] * 10_000, 4096, seed=0, block=16), 3, np.arange(4096) + 20_000 * 4096)


def test_what_does_not_fit_is_said():
    with pytest.raises(DataError, match="3 usable samples do not fill one batch of 4"):
        Plan([3], 4, 0)
    with pytest.raises(DataError, match=r"data.batch_size=10 .* 3 ranks x 1 micro-batches; take a multiple of 3, such as 9"):
        micro_batch(10, 3, 1)
    with pytest.raises(IndexError):
        Plan([8], 4, 0).locate(0, np.array([8]))
    with pytest.raises(DataError, match="cannot be shared by 4 ranks"):
        val_slices(3, 2, 0, 4)


def test_validation_cuts_of_every_small_set_hold_something():
    for total, batch, world in itertools.product(range(1, 40), range(1, 6), range(1, 9)):
        if total >= world:
            cuts = [cut for rank in range(world) for cut in val_slices(total, batch, rank, world)]
            assert min(map(len, cuts)) >= 1 and len(cuts) % world == 0 and len(np.unique(np.concatenate(cuts))) == total


@pytest.mark.parametrize(
    "total,batch,world",
    [(1, 64, 1), (10, 4, 3), (7, 64, 7), (100, 8, 4), (65, 64, 1), (129, 16, 8), (303, 1, 2), (7, 1, 4), (9, 2, 4), (5, 2, 4)],
)
def test_validation_shows_every_sample_once_in_equally_many_batches(total, batch, world):
    ranks = [val_slices(total, batch, rank, world) for rank in range(world)]
    assert len({len(cuts) for cuts in ranks}) == 1
    most = batch if batch > 1 or total % world == 0 else 2
    assert all(1 <= len(cut) <= most for cuts in ranks for cut in cuts)
    assert sorted(int(p) for cuts in ranks for cut in cuts for p in cut) == list(range(total))
