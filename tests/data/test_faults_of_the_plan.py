"""Faults of the plan and of resuming (numbers of the fault matrix): the specified result of each, on indexes out of thin air."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from helpers.batches import data
from helpers.plans import ahead, batches, feed, ids, part, twice
from helpers.shards import sample, write_shards, write_tar

from mmpretrain.data.buckets import Buckets
from mmpretrain.data.cursor import VERSION, Cursor
from mmpretrain.data.errors import DataError, ResumeError
from mmpretrain.data.feed import Feed
from mmpretrain.data.plan import micro_batch

IDENTITY = {"fingerprint": "f", "batch_size": 640, "seed": 3, "block": 4, "captions": "sample", "text_from": "captions"}
LAYOUTS = [  # ranks, micro-batches, workers: the workers of a loader take steps in turn
    (1, 1, 0), (2, 3, 1), (8, 5, 2), (64, 1, 1), (1, 3, 4), (3, 1, 2), (4, 2, 3), (5, 8, 1), (16, 4, 2), (10, 1, 8), (6, 10, 1), (1, 64, 5)
]  # fmt: skip


def cursor(made: Feed) -> Cursor:
    return Cursor(made, {**IDENTITY, "batch_size": made.batch_size})


@pytest.mark.fault(35)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: f"{one[0]}x{one[1]}x{one[2]}")
def test_fault_35_twelve_layouts_have_the_same_global_batches(layout):
    world, accumulate, workers = layout
    made = feed([900, 7, 0, 1300, 61, 2000], 960)  # divisible by 1x1, 2x3, 8x5, 64x1 and the others
    items = ahead(cursor(made), 6)
    whole = batches(made, items)
    lanes = max(1, workers)
    found: list[Any] = [None] * len(items)
    for lane in range(lanes):  # what each worker is asked for
        own = range(lane, len(items), lanes)
        for step, batch in zip(own, batches(made, [items[step] for step in own], world, accumulate), strict=True):
            found[step] = batch
    assert found == whole


@pytest.mark.fault(10, 11, 27, 28)
@pytest.mark.parametrize("seed", range(30))
def test_fault_28_uneven_shards_give_equal_steps_on_every_rank(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 1001, size=int(rng.integers(1, 9))).tolist() if seed % 5 else [int(rng.integers(40, 1001))]  # also one shard
    sizes[0] = sizes[0] or 1
    world, accumulate = [(2, 1), (4, 1), (8, 2), (3, 2), (16, 1)][seed % 5]
    batch = world * accumulate * int(rng.integers(1, 4))
    if sum(sizes) < batch:
        with pytest.raises(DataError, match="do not fill one batch"):
            feed(sizes, batch)
        return
    made = feed(sizes, batch, block=int(rng.integers(1, 5)))
    items = ahead(cursor(made))
    ranks = [ids(made, items, rank, world, accumulate) for rank in range(world)]
    assert {len(steps) for steps in ranks} == {sum(sizes) // batch}
    assert {len(micro) for steps in ranks for step in steps for micro in step} == {batch // (world * accumulate)}
    rows = [row for steps in ranks for step in steps for micro in step for row in micro]
    assert not twice(rows) and len(rows) + sum(made.dropped().values()) == sum(sizes)  # nothing twice, the rest is counted


@pytest.mark.fault(27)
def test_fault_27_one_shard_and_many_ranks():
    made = feed([70], 64)
    found = batches(made, ahead(cursor(made)), world=64)
    assert len(found) == 1 and len(found[0]) == 64 and made.dropped() == {"": 6}


@pytest.mark.fault(27)
def test_fault_27_three_shards_for_two_ranks_of_two_workers(tmp_path):
    shards = write_shards(tmp_path, (10, 10, 10))
    loaders = [data(shards, rank=rank, world=2, batch_size=8, workers=2, preparers={}).train_dataloader() for rank in range(2)]
    ranks = [[key for (batch,) in loader for key in batch.keys] for loader in loaders]  # batches of four, as webdataset's
    assert [loader.num_workers for loader in loaders] == [2, 2] and [len(keys) for keys in ranks] == [12, 12]
    assert len({*ranks[0], *ranks[1]}) == 24


@pytest.mark.fault(12)
def test_fault_12_fewer_samples_than_ranks_and_workers(tmp_path):
    with pytest.raises(DataError, match=r"3 usable samples do not fill one batch of 8; lower data\.batch_size"):
        feed([3], 8)
    with pytest.raises(DataError, match="take a multiple of 8, such as 8"):
        micro_batch(4, 8, 1)
    made = data(write_shards(tmp_path, (3,)), batch_size=3, workers=5, preparers={})
    assert made.train_dataloader().num_workers == 1  # one step: one worker, none without work
    assert len(list(made.train_dataloader())) == 1


@pytest.mark.fault(10, 11)
def test_fault_10_and_11_empty_shards_and_shards_of_one_sample(tmp_path):
    made = feed([0, 5, 0, 1, 0], 3)
    rows = [row for batch in batches(made, ahead(cursor(made))) for row in batch]
    assert len(rows) == 6 and {row[2] for row in rows} == {1, 3}
    write_shards(tmp_path, (1, 4))
    write_tar(tmp_path / "00002.tar", [])
    keys = [key for (batch,) in data(tmp_path, batch_size=5, preparers={}).train_dataloader() for key in batch.keys]
    assert sorted(keys) == [f"k{n:05d}" for n in range(5)]


@pytest.mark.fault(32)
def test_fault_32_ranks_that_differ_have_other_positions(tmp_path):
    shards = write_shards(tmp_path / "a", (9, 8))
    same = {data(shards, rank=rank, world=2, batch_size=8, preparers={}).position for rank in range(2)}
    others = [data(shards, batch_size=8, preparers={}, **more) for more in ({"seed": 9}, {"captions": "all"}, {"block": 1})]
    others.append(data(write_shards(tmp_path / "b", (9, 9)), batch_size=8, preparers={}))
    assert len(same | {one.position for one in others}) == 5  # what `distributed.agree` compares before the first step


@pytest.mark.fault(34, 36, 37)
@pytest.mark.parametrize("buckets", [None, Buckets(window=2), Buckets(window=2, tokens=3000)], ids=["plain", "buckets", "tokens"])
def test_fault_34_36_37_resume_at_any_step_and_several_times(buckets):
    def new() -> Cursor:
        return cursor(feed([100, 31], 32, buckets=buckets))

    walker = new()
    expected = ahead(walker, 12)
    states = []
    for _ in range(13):
        states.append(json.loads(json.dumps(walker.state())))
        walker.advance()
    for step in range(13):  # also at step 0 and at the ends of epochs
        again = new()
        again.load(states[step])
        assert ahead(again, 12)[: 12 - step] == expected[step:]
    hop = new()
    for step in (1, 2, 3, 7):  # four resumes, two of them in one epoch
        next_ = new()
        next_.load(hop.state())
        hop = next_
        while hop.steps < step:
            assert hop.item() == expected[hop.steps]
            hop.advance()
    assert hop.state() == states[7]


@pytest.mark.fault(38)
def test_fault_38_a_changed_set_is_refused(tmp_path):
    state = data(write_shards(tmp_path / "a", (9, 8)), batch_size=8, preparers={}).state_dict()
    with pytest.raises(ResumeError, match="the training shards are not those of the checkpoint"):
        data(write_shards(tmp_path / "b", (9, 9)), batch_size=8, preparers={}).load_state_dict(state)


@pytest.mark.fault(39)
@pytest.mark.parametrize("missing", ["version", "epoch", "samples", "fingerprint", "seed"])
def test_fault_39_states_of_other_versions_are_refused(missing):
    made = cursor(feed([100], 10))
    state = made.state()
    with pytest.raises(ResumeError, match=f"lacks {missing}"):
        made.load({name: value for name, value in state.items() if name != missing})
    with pytest.raises(ResumeError, match=f"has version 9, this is {VERSION}"):
        made.load({**state, "version": 9})
    made.load({})  # a checkpoint without a position: from the start


@pytest.mark.fault(33)
def test_fault_33_every_rank_has_validation_batches(tmp_path):
    shards = write_shards(tmp_path, (9,))
    ranks = [data(shards, val={"v": str(shards)}, val_batch_size=4, rank=rank, world=4, batch_size=8, preparers={}) for rank in range(4)]
    loaders = [made.val_dataloader()[0] for made in ranks]
    assert [len(loader) for loader in loaders] == [1] * 4
    assert sum(batch.size for loader in loaders for batch in loader) == 9
    with pytest.raises(DataError, match="9 validation samples cannot be shared by 10 ranks"):
        data(shards, val={"v": str(shards)}, world=10, batch_size=10, seed=1, captions="all", preparers={}).val_dataloader()


def test_states_are_small_and_alike():
    names = ["laion", "conceptual_captions", "books", "web"]
    made = feed([part(name, [1000], 0.25, 7) if name != "web" else part(name, [1000], 0.25) for name in names], 640, "batch", Buckets())
    facts = {name: {"as": "pairs/captions/sample", "shards": "0123456789ab", "weight": 0.123456, "max_epochs": 100} for name in names}
    from mmpretrain.data.mixture_cursor import BatchMixtureCursor

    assert made.ruler is not None
    walker = BatchMixtureCursor(made, {"batch_size": 640, "seed": 1 << 31, "block": 16, "sources": facts, "buckets": made.ruler.identity})
    walker.own, walker.seen, walker.steps = [10**8] * 4, [10**11] * 4, 10**9
    assert len(json.dumps(walker.state())) < 1024


def test_resuming_after_a_million_samples_reads_nothing(monkeypatch):
    made = cursor(feed([10_000] * 120, 1000))
    for shard in made.feed.parts[0].units.reader.indexes:
        assert not shard.path.exists()  # there is nothing that could be read
    made.load({**cursor(feed([10_000] * 120, 1000)).state(), "epoch": 0, "samples": 1_000_000})
    calls = []
    monkeypatch.setattr(type(made.feed.plans[0]), "locate", lambda self, *a: calls.append(a))
    assert made.item().window == 1000 and ahead(made, 3)[0] == made.item() and not calls  # nor is anything shuffled for it


def test_the_plan_of_many_samples_needs_little_memory():
    made = feed([100_000], 4096)
    made.plans[0].sizes = np.full(10_000, 10_000, dtype=np.int64)  # 10^8 units; the units themselves are of the reader
    made.plans[0].total = made.tracks[0].order.total = 10**8
    tracemalloc.start()
    for place in (0, 5 * 10**7, 10**8 - 4096):
        made.plans[0].locate(3, np.arange(place, place + 4096))
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_keys_without_a_picture_are_counted(tmp_path):
    write_tar(tmp_path / "0.tar", [*sample(0), ("bare.txt", b"alone"), *sample(1)])
    made = data(tmp_path, batch_size=2, preparers={})
    assert made.feed.parts[0].units.left_out == 1
