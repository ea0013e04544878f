"""Shape-aware batches: borders from the index alone, inside a window, the same for every layout, nothing twice and nothing lost."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.plans import ahead, batches, feed, ids, part, twice, units

from mmpretrain.data import draws
from mmpretrain.data.buckets import Buckets, Ruler, ends_by_tokens
from mmpretrain.data.cursor import Cursor
from mmpretrain.data.errors import DataError, ResumeError
from mmpretrain.data.feed import Feed, Part
from mmpretrain.data.image import ImageTransform, vilt_size
from mmpretrain.random import key_of

IDENTITY = {"fingerprint": "f", "batch_size": 24, "buckets": {"window": 4}}
VILT = ImageTransform("vilt", 64, 16)
TOKENS = Buckets(window=4, tokens=1500, multiple=4)


def cursor(made: Feed, allow: bool = False) -> Cursor:
    return Cursor(made, {**IDENTITY, "batch_size": made.batch_size}, allow)


def test_draws_of_many_positions_are_those_of_one():
    found = draws.keys(-7, 3, np.arange(50))
    assert found.tolist() == [key_of(-7, 3, position) & ((1 << 64) - 1) for position in range(50)]
    drawn = draws.drawn(draws.keys(1, 2, np.arange(30_000)), np.full(30_000, 5), "caption")
    assert np.bincount(drawn).min() > 5800 and len(np.bincount(drawn)) == 5
    assert draws.drawn(found, np.zeros(50, dtype=np.int64), "caption").max() == 0


def test_lengths_come_from_the_index():
    made = units([40], every_text=True)
    ruler = Ruler(Buckets(text_bytes=5.0), VILT, 40, [made])
    zero = np.zeros(80, dtype=np.int64)
    shapes, texts = ruler.measure(zero, zero, np.arange(80), draws.keys(0, 0, np.arange(80)))
    index = made.reader.indexes[0]
    assert texts.tolist() == [0, 1] * 40
    assert shapes.texts_P.tolist() == [min(-(-int(size) // 5) + 2, 40) for size in index.caption_bytes_C]
    sizes = [vilt_size(int(h), int(w), 64, 16) for h, w in zip(index.heights_S, index.widths_S, strict=True) for _ in "ab"]
    assert list(zip(shapes.heights_P.tolist(), shapes.widths_P.tolist(), strict=True)) == sizes
    patches = [h // 16 * (w // 16) for h, w in sizes]
    assert shapes.cost_P.tolist() == [p + t for p, t in zip(patches, shapes.texts_P.tolist(), strict=True)]
    assert max(shapes.cost_P.tolist()) <= ruler.longest == 40 + 4 * 6
    square = Ruler(Buckets(by=("image",)), ImageTransform("clip", 48, 16), 40, [made])
    assert set(square.measure(zero, zero, np.arange(80), zero.astype(np.uint64))[0].cost_P.tolist()) == {9} and square.longest == 9
    texts_only = units([40], reads="texts")
    found, _ = Ruler(Buckets(), VILT, 40, [texts_only]).measure(zero[:40], zero[:40], np.arange(40), draws.keys(0, 0, np.arange(40)))
    assert found.heights_P.max() == 0 and found.cost_P.tolist() == found.texts_P.tolist()


def test_batches_of_a_budget():
    cost = np.sort(np.random.default_rng(0).integers(5, 60, size=500))[::-1]
    ends = ends_by_tokens(cost, 1000, 8)
    parts = np.split(cost, ends[:-1])
    assert sum(map(len, parts)) == 500 and all(part.max() * len(part) <= 1000 for part in parts)
    assert all(len(part) % 8 == 0 for part in parts[:-2]) and min(map(len, parts)) >= 8
    assert all(part.max() * (len(part) + 8) > 1000 for part in parts[:-2])  # as many as fit
    assert ends_by_tokens(np.asarray([5, 5, 5]), 1000, 8).tolist() == [3]
    with pytest.raises(DataError, match="tokens=50 is less than one sample of 60 tokens"):
        ends_by_tokens(np.asarray([5, 60]), 50, 8)


def test_batches_are_of_one_shape():
    parts = [Part("", units([75, 45], every_text=True))]
    made, plain = feed(parts, 24, buckets=Buckets(window=5)), feed(parts, 24)
    ruler = Ruler(Buckets(), VILT, 40, [part.units for part in made.parts])

    def spread(one: Feed) -> tuple[float, float]:
        """Mean over batches: different sizes of pictures, and tokens that padding adds to each real one."""
        sizes, waste = [], []
        for batch in batches(one, ahead(Cursor(one, {}))):
            _, source, shard, unit, _ = np.asarray(batch).T
            shapes, _ = ruler.measure(source, shard, unit, draws.keys(3, 0, np.arange(len(unit))))
            sizes.append(len(set(zip(shapes.heights_P.tolist(), shapes.widths_P.tolist(), strict=True))))
            waste.append(len(unit) * shapes.cost_P.max() / shapes.cost_P.sum() - 1)
        return float(np.mean(sizes)), float(np.mean(waste))

    assert spread(plain)[0] > 3 and spread(made)[0] < 2.2 and spread(made)[1] < 0.8 * spread(plain)[1]


@pytest.mark.parametrize("buckets", [Buckets(window=3), TOKENS], ids=["samples", "tokens"])
def test_an_epoch_of_buckets_has_every_sample_once(buckets):
    made = feed([70, 1, 0, 130, 61], 24, buckets=buckets)
    walker, rows, orders = cursor(made), [], []
    for epoch in range(2):
        while walker.epoch == epoch:
            (batch,) = batches(made, [walker.item()])
            rows += batch
            walker.advance()
        assert not twice(rows) and len({row[0] for row in rows}) == len(rows)
        assert len(rows) == 262 - made.tracks[0].dropped and made.tracks[0].dropped == (0 if buckets.tokens else 262 % 24)
        orders.append(sorted(rows))
        rows = []
    assert orders[0] != orders[1]
    assert walker.steps == 2 * made.steps if made.exact else abs(walker.steps - 2 * made.steps) <= 2


@pytest.mark.fault(35)
@pytest.mark.parametrize("layout", [(1, 1), (2, 3), (8, 1), (5, 2), (16, 1), (1, 12)])
def test_layouts_do_not_change_batches_of_tokens(layout):
    world, accumulate = layout
    made = feed([500, 400], 64, buckets=Buckets(window=4, tokens=4500))
    made.check(world, accumulate)
    items = ahead(cursor(made), 5)
    assert batches(made, items, world, accumulate) == batches(made, items)
    for step in range(5):  # near-equal tokens on every rank
        parts = [micro for rank in range(world) for micro in ids(made, items, rank, world, accumulate)[step]]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1 and min(map(len, parts)) >= 1
        costs = []
        for part_ in parts:
            _, source, shard, unit, _ = np.asarray(part_).T
            assert made.ruler is not None
            costs.append(made.ruler.measure(source, shard, unit, draws.keys(0, 0, np.arange(len(unit))))[0].heights_P.sum() / len(unit))
        assert max(costs) <= 1.6 * min(costs)


def test_budgets_too_small_for_the_ranks_are_refused_at_the_start():
    made = feed([500], 64, buckets=Buckets(window=4, tokens=1000))
    with pytest.raises(DataError, match=r"tokens=1000 counts all ranks and micro-batches; .* cut into 8 parts; take at least 2048"):
        made.check(8, 1)
    for seed in range(20):
        made = feed([200 + seed], 64, buckets=Buckets(window=1, tokens=4 * 64 * 5), seed=seed)
        made.check(5, 1)
        assert min(len(batch) for batch in batches(made, ahead(cursor(made)))) >= 5
    with pytest.raises(DataError, match="window, tokens and multiple must be at least 1"):
        Buckets(window=0)
    with pytest.raises(DataError, match="take some of image, text, regions"):
        Buckets(by=("pixels",))


@pytest.mark.fault(34)
@pytest.mark.parametrize("buckets", [Buckets(window=4), TOKENS], ids=["samples", "tokens"])
def test_resume_at_every_batch_of_a_window(buckets):
    def new() -> Feed:
        return feed([120, 80], 24, buckets=buckets)

    walker, states = cursor(new()), []
    expected = batches(walker.feed, ahead(walker, 20))
    for _ in range(20):
        states.append(json.loads(json.dumps(walker.state())))
        walker.advance()
    assert {"epoch", "window", "batch", "samples"} <= set(states[0]) and len(json.dumps(states[-1])) < 400
    for number in range(20):
        again = cursor(new())
        again.load(states[number])
        assert again.state() == states[number]
        found = batches(again.feed, ahead(again, 3))
        assert found[: 20 - number] == expected[number : number + 3]
    with pytest.raises(ResumeError, match=r"data.buckets=None, not \{'window': 4\}"):
        cursor(new()).load({name: value for name, value in states[3].items() if name != "buckets"})
    with pytest.raises(ResumeError, match=r"data\.buckets="):
        Cursor(feed([120, 80], 24), {"fingerprint": "f", "batch_size": 24}).load(states[3])
    smaller = Cursor(feed([120, 80], 12, buckets=buckets), {**IDENTITY, "batch_size": 12}, allow_change=True)
    smaller.load(states[3])
    assert smaller.place.batch == 0 and 0 <= smaller.samples - states[3]["samples"] < 4 * 12


def test_buckets_of_a_mixture():
    parts = [part("pairs", [200], 0.5), part("books", [150], 0.5, reads="texts")]
    made = feed(parts, 24, mix="batch", buckets=TOKENS)
    from mmpretrain.data.mixture_cursor import BatchMixtureCursor

    facts = {name: {"as": name, "shards": name, "weight": 0.5} for name in made.names}
    walker = BatchMixtureCursor(made, {"batch_size": 24, "sources": facts})
    items = ahead(walker, 16)
    found = batches(made, items)
    assert [item.track for item in items] == [0, 1] * 8 and all(len({row[1] for row in batch}) == 1 for batch in found)
    for _ in range(16):
        walker.advance()
    assert walker.consumed() == {
        name: sum(len(b) for b, i in zip(found, items, strict=True) if i.track == n) for n, name in enumerate(made.names)
    }
    mixed = feed([part("a", [200], 0.5), part("bb", [150], 0.5)], 24, buckets=Buckets(window=3))
    rows = [row for batch in batches(mixed, ahead(cursor(mixed), 9)) for row in batch]
    assert not [row for row in twice(rows) if row[0] == 0] and [row[1] for row in rows].count(0) == 108
