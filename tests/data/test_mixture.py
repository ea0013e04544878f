"""Mixtures: shares, the largest deficit, caps, cursors of sources, and what a changed mixture does to a saved position."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from helpers.plans import ahead, batches, feed, ids, part, twice

from mmpretrain.data.cursor import Cursor
from mmpretrain.data.errors import DataError, ResumeError
from mmpretrain.data.feed import Feed, Part
from mmpretrain.data.mixture import Blend, Interleave, TrainSource, quotas, shares, stages
from mmpretrain.data.mixture_cursor import BatchMixtureCursor, SampleMixtureCursor

SPECS = {"a": TrainSource("a"), "b": TrainSource("b"), "c": TrainSource("c")}


def facts(made: Feed, **change: Any) -> dict[str, Any]:
    """An identity as the data module makes it."""
    found = {p.name: {"as": "pairs", "shards": f"shards of {p.name}"[:16], "weight": round(p.share, 9)} for p in made.parts}
    found = {
        name: one | ({"max_epochs": p.max_epochs} if p.max_epochs else {}) for (name, one), p in zip(found.items(), made.parts, strict=True)
    }
    return {"batch_size": made.batch_size, "seed": made.seed, "block": 4, "sources": found, **change}


def cursor(made: Feed, allow: bool = False) -> Cursor:
    return (SampleMixtureCursor if made.mix == "sample" else BatchMixtureCursor)(made, facts(made), allow)


@pytest.mark.parametrize("weights", [(0.7, 0.2, 0.1), (1, 1, 1), (5, 1), (123456, 789, 55.5, 1000), (1,), (0.37, 0.61, 0.02)])
def test_every_prefix_keeps_the_shares(weights):
    made = Interleave(weights)
    share = made.quotas / made.period
    assert np.allclose(share, np.asarray(weights) / sum(weights), atol=1 / 65536)
    sources, asked = made.at(np.arange(3 * made.period))
    for source, one in enumerate(share):
        ahead_of = np.cumsum(sources == source) - one * np.arange(1, len(sources) + 1)
        assert ahead_of.max() < 1 and ahead_of.min() > -len(weights) / 2
        assert asked[sources == source].tolist() == list(range(3 * made.quotas[source]))
    for turns in (0, 1, made.period // 2, made.period, 3 * made.period):
        assert made.counts(turns).tolist() == np.bincount(sources[:turns], minlength=len(weights)).tolist()
    assert [made.turn(int(s), int(n)) for s, n in zip(sources[:50], asked[:50], strict=True)] == list(range(50))[: len(sources)]


def test_a_position_far_away_needs_no_replay():
    made = Blend([0.7, 0.2, 0.1], [None, 10**8, None])
    sources, numbers = made.at(np.asarray([10**9, 10**9 + 1, 10**15]))
    assert made.counts(10**9).sum() == 10**9 and made.counts(10**9)[1] == 10**8
    assert numbers[0] == made.counts(10**9)[sources[0]] and numbers[1] == made.counts(10**9 + 1)[sources[1]]


def test_weights_of_sizes_and_temperature():
    assert shares(SPECS, [900, 90, 10]) == pytest.approx((0.9, 0.09, 0.01))
    assert shares(SPECS, [900, 90, 10], temperature=2.0) == pytest.approx(tuple(x**0.5 / (30 + 90**0.5 + 10**0.5) for x in (900, 90, 10)))
    assert shares(SPECS, [900, 90, 10], temperature=1e9) == pytest.approx((1 / 3,) * 3)
    weighted = {name: TrainSource(name, weight=w) for name, w in (("a", 3), ("b", 1))}
    assert shares(weighted, [5, 5]) == (0.75, 0.25) and quotas([3, 1]) == (3, 1)
    assert sum(quotas([1e-9, 1.0])) == 65536 and min(quotas([1e-9, 1.0])) == 1
    for change, message in [
        (dict(SPECS, a=TrainSource("a", weight=1.0)), "b, c have no weight"),
        (weighted, "temperature=2.0 makes weights"),
    ]:
        with pytest.raises(DataError, match=message):
            shares(change, [1] * len(change), temperature=2.0)
    with pytest.raises(DataError, match="weight 0 of 'x' must be positive"):
        TrainSource("x", weight=0)
    with pytest.raises(DataError, match="max_epochs 0"):
        TrainSource("x", max_epochs=0)


def test_a_source_leaves_after_its_epochs_and_the_others_share_its_part():
    parts = [part("a", [10, 6], 0.5, max_epochs=2), part("b", [40], 0.3), part("c", [8], 0.2)]
    made = feed(parts, batch=8)
    rows = [row for batch in batches(made, ahead(cursor(made), 40)) for row in batch]
    of_a = [row for row in rows if row[1] == 0]
    assert len(of_a) == 32 and max(row[0] for row in rows[: 32 * 2]) == 63  # half of the first 64 positions
    rest = [row[1] for row in rows[64:]]
    assert 0 not in rest and rest.count(1) / len(rest) == pytest.approx(0.6, abs=0.01)
    with pytest.raises(DataError, match="every source has max_epochs"):
        feed([part("a", [10], 0.5, 1), part("b", [10], 0.5, 1)], batch=4)


@pytest.mark.parametrize("mix", ["sample", "batch"])
def test_stages_a_source_joins_when_another_has_left(mix):
    """ImageBERT: one set first, then the others, whatever their weights; a position in either stage is found again."""

    def new() -> Feed:
        later = (part("cc", [24], 0.6), part("sbu", [16], 0.3))
        return feed([part("web", [16, 24], 0.1, max_epochs=2), *(one._replace(after=0) for one in later)], batch=8, mix=mix)

    walker, states = cursor(new()), []
    found = batches(walker.feed, ahead(walker, 40))
    for _ in range(40):
        states.append(json.loads(json.dumps(walker.state())))
        walker.advance()
    sources = [row[1] for batch in found for row in batch]
    assert set(sources[:80]) == {0} and set(sources[80:]) == {1, 2}
    assert sources[80:].count(1) / len(sources[80:]) == pytest.approx(2 / 3, abs=0.03)
    for number in (3, 9, 10, 11, 30):
        again = cursor(new())
        again.load(states[number])
        assert batches(again.feed, ahead(again, 5)) == found[number : number + 5]


def test_stages_that_cannot_be():
    specs = {"a": TrainSource("a", max_epochs=1), "b": TrainSource("b", after="a"), "c": TrainSource("c", after="a", max_epochs=2)}
    assert stages(specs) == (None, 0, 0) and stages(SPECS) == (None,) * 3
    for change, message in (
        ({"b": TrainSource("b", after="d")}, "'b' waits for 'd' .*none of a, b, c"),
        ({"c": TrainSource("c", after="b")}, "'c' waits for 'b' .*never leaves; give it max_epochs"),
        ({"a": TrainSource("a", after="c", max_epochs=1)}, "wait for each other"),
        ({"a": TrainSource("a", after="a", max_epochs=1)}, "wait for each other"),
    ):
        with pytest.raises(DataError, match=message):
            stages({**specs, **change})


def test_every_source_runs_through_its_own_epochs():
    made = feed([part("a", [30, 20], 0.5), part("b", [7, 3], 0.5)], batch=8)
    assert made.steps == 7 and not made.dropped()
    rows = [row for batch in batches(made, ahead(cursor(made), 25)) for row in batch]
    for source, total in ((0, 50), (1, 10)):
        own = [row[2:4] for row in rows if row[1] == source]
        for start in range(0, len(own) - total + 1, total):
            assert len(set(own[start : start + total])) == total  # nothing twice before all others came
        assert own[:total] != own[total : 2 * total]


def test_a_batch_of_one_source_never_spans_its_epochs():
    made = feed([part("a", [30, 20], 0.75), part("b", [17, 3], 0.25)], batch=8, mix="batch")
    items = ahead(cursor(made), 24)
    found = batches(made, items)
    assert [len({row[1] for row in batch}) for batch in found] == [1] * 24
    assert [batch[0][1] for batch in found].count(0) == 18 and made.dropped() == {"a": 2, "b": 4}
    first = [row for item, batch in zip(items, found, strict=True) for row in batch if item.epoch == 0]
    assert not twice(first) and all(twice(batch) == [] for batch in found)
    with pytest.raises(DataError, match=r"3 usable samples do not fill one batch of 8; .*; source 'b' of data.train"):
        feed([part("a", [30], 0.5), part("b", [3], 0.5)], batch=8, mix="batch")


@pytest.mark.parametrize("mix", ["sample", "batch"])
@pytest.mark.fault(37)
def test_resume_at_every_step_of_a_mixture(mix):
    def new() -> Feed:
        return feed([part("a", [30, 20], 0.5), part("b", [9, 8], 0.3, max_epochs=3), part("c", [25], 0.2)], batch=8, mix=mix)

    walker, states = cursor(new()), []
    expected = batches(walker.feed, ahead(walker, 40))
    for _ in range(40):
        states.append(json.loads(json.dumps(walker.state())))
        walker.advance()
    assert all(len(json.dumps(state)) < 1024 for state in states)
    for number in range(0, 40, 3):
        again = cursor(new())
        again.load(states[number])
        assert again.state() == states[number]
        assert batches(again.feed, ahead(again, 5)) == expected[number : number + 5][: 40 - number] or number > 35
    assert sum(walker.consumed().values()) == 320 and walker.consumed()["b"] <= 51
    assert walker.state()["sources"]["b"]["epoch"] == 3


@pytest.mark.parametrize("mix", ["sample", "batch"])
@pytest.mark.fault(40)
def test_a_changed_mixture_is_refused_or_recorded(mix):
    def new(share: float = 0.5, names: str = "abb"[:2], most: int | None = None, allow: bool = False) -> Cursor:
        sizes = {"a": [30, 20], "b": [9, 8], "c": [25]}
        rest = (1 - share) / (len(names) - 1)
        return cursor(feed([part(n, sizes[n], share if n == "a" else rest, most if n == "b" else None) for n in names], 8, mix), allow)

    walker = new()
    for _ in range(6):
        walker.advance()
    state = json.loads(json.dumps(walker.state()))
    for change, message in [
        ({"share": 0.7}, "the weight of source 'a' was 0.5 in the checkpoint and is 0.7; set it back, or set data.allow_data_change=true"),
        ({"names": "abc"}, "source 'c' was not in the checkpoint"),
        ({"names": "ac"}, "source 'b' of the checkpoint is gone"),
        ({"most": 2}, "max_epochs of source 'b' was None in the checkpoint and is 2"),
    ]:
        with pytest.raises(ResumeError, match=message):
            new(**change).load(state)
        accepted = new(**change, allow=True)
        accepted.load(state)
        assert any(message.split(";")[0] in line for line in accepted.warnings)
        later = accepted.state()
        assert later["changes"][0].startswith("step 6: ") and len(json.dumps(later)) < 1024
        assert {n: one["epoch"] for n, one in later["sources"].items() if n in "ab"} == {
            n: one["epoch"] for n, one in state["sources"].items() if n in later["sources"]
        }
        rows = [row for batch in batches(accepted.feed, ahead(accepted, 3)) for row in batch]
        gone = {row[1:4] for row in (r for b in batches(walker.feed, ahead(new(), 6)) for r in b) if row[1] == 0}
        seen = {row[1:4] for row in rows if row[1] == 0}
        assert 20 <= len(gone) <= 32 and seen and not gone & seen  # source a goes on with what it has not shown yet
        accepted.advance()
        again = new(**change)
        again.load(json.loads(json.dumps(accepted.state())))  # no longer a change
        assert again.state() == accepted.state() and ahead(again, 4) == ahead(accepted, 4)
    other = new()
    other.facts["a"]["shards"] = "others"
    with pytest.raises(ResumeError, match="the fingerprint of the shards of source 'a'"):
        other.load(state)


@pytest.mark.parametrize("mix", ["sample", "batch"])
@pytest.mark.fault(40)
def test_another_batch_size_needs_a_multiple(mix):
    def new(batch: int, allow: bool = True) -> Cursor:
        return cursor(feed([part("a", [60, 20], 0.5), part("b", [49], 0.5)], batch, mix), allow)

    walker = new(8)
    for _ in range(6):
        walker.advance()
    state = json.loads(json.dumps(walker.state()))
    with pytest.raises(ResumeError, match=r"data\.batch_size was 8 in the checkpoint and is 4"):
        new(4, allow=False).load(state)
    samples = "48 samples of this epoch, which" if mix == "sample" else r"24 samples of this epoch of source 'a', which"
    with pytest.raises(ResumeError, match=rf"{samples} is no multiple of data\.batch_size=7; continue with data\.batch_size=8"):
        new(7).load(state)
    for batch in (4, 12, 24):
        accepted = new(batch)
        accepted.load(state)
        for name in "ab":  # nothing skipped, nothing twice
            assert accepted.state()["sources"][name]["samples"] == state["sources"][name]["samples"] == 24
        before = {row[1:4] for one in batches(walker.feed, ahead(new(8), 6)) for row in one}
        after = {row[1:4] for one in batches(accepted.feed, ahead(accepted, 48 // batch)) for row in one}
        assert not before & after


def test_one_source_is_no_mixture_and_the_other_way_round():
    mixed, alone = cursor(feed([part("a", [30], 0.5), part("b", [30], 0.5)], 8)), feed([30], 8)
    with pytest.raises(ResumeError, match="trained on a mixture of a, b; name these sources"):
        Cursor(alone, {"batch_size": 8}).load(mixed.state())
    with pytest.raises(ResumeError, match=r"trained with one source, not data\.mix=sample"):
        mixed.load(Cursor(alone, {"batch_size": 8}).state())
    turns = cursor(feed([part("a", [30], 0.5), part("b", [30], 0.5)], 8, "batch"))
    with pytest.raises(ResumeError, match=r"trained with data.mix=batch, not data.mix=sample"):
        mixed.load(turns.state())


def test_unlike_sources_are_not_put_into_one_batch():
    parts = [part("pairs", [30], 0.5), part("books", [30], 0.5, reads="texts")]
    with pytest.raises(DataError, match=r"pairs of 'pairs' and texts of 'books' into one batch; set data.mix=batch"):
        feed(parts, batch=8)
    assert feed(parts, batch=8, mix="batch").steps == 6


def test_layouts_do_not_change_a_mixture():
    for mix in ("sample", "batch"):
        made = feed([Part("a", part("a", [90], 1).units, 0.5), part("b", [70], 0.5)], batch=24, mix=mix)
        items = ahead(cursor(made), 4)
        whole = batches(made, items)
        for world, accumulate in [(1, 1), (2, 3), (8, 3), (24, 1), (3, 2)]:
            assert batches(made, items, world, accumulate) == whole
        assert len(ids(made, items, 1, 2, 3)[0]) == 3
