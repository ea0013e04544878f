"""Steps of the data module: the same batches on every layout, exact resume, draws keyed by position."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.batches import data, flat, same, whole
from helpers.shards import write_shards

from mmpretrain.data.errors import ResumeError
from mmpretrain.data.module import ShardData
from mmpretrain.data.text import TextOptions
from mmpretrain.data.track import Place

SIZES = (13, 1, 20, 7, 9)  # 50 samples


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("fifty"), SIZES)


LAYOUTS = [
    (1, 1, 1),
    (1, 2, 0),
    (1, 3, 0),
    (1, 4, 2),
    (1, 12, 0),
    (2, 1, 0),
    (2, 3, 1),
    (3, 2, 0),
    (3, 4, 0),
    (4, 3, 0),
    (6, 2, 0),
    (12, 1, 0),
]


@pytest.mark.fault(35)
def test_world_micro_batches_and_workers_do_not_change_a_global_batch(shards):
    expected = whole(shards, 1, 1, 0)
    assert len(set(expected[0]["keys"] + expected[1]["keys"])) == 24
    for world, accumulate, workers in LAYOUTS:
        found = whole(shards, world, accumulate, workers)
        assert all(same(a, b) for a, b in zip(expected, found, strict=True)), (world, accumulate, workers)


def test_an_epoch_shows_no_sample_twice_and_the_next_is_another(shards):
    made = data(shards)
    loader = made.train_dataloader()
    orders = []
    for _ in range(2):
        steps = []
        for item in loader:
            steps.append(item)
            made.advance()
        assert len(steps) == len(loader) == made.steps_per_epoch == 4
        orders.append([key for item in steps for key in item[0].keys])
    assert all(len(set(order)) == 48 for order in orders) and orders[0] != orders[1]
    assert made.plan.dropped == 2 and made.state_dict()["epoch"] == 2


def test_resume_at_every_step_is_exact(shards):
    made = data(shards, accumulate=2)
    expected, states = [], []
    for _ in range(2):
        for item in made.train_dataloader():
            states.append(made.state_dict())
            expected.append(flat(list(item)))
            made.advance()
    states.append(made.state_dict())
    assert [(s["epoch"], s["samples"]) for s in states] == [(e, s) for e in (0, 1) for s in (0, 12, 24, 36)] + [(2, 0)]
    for number, state in enumerate(states[:-1]):
        again = data(shards, accumulate=2)
        again.load_state_dict(json.loads(json.dumps(state)))
        rest = [flat(list(item)) for item in again.train_dataloader()]
        assert len(rest) == 4 - number % 4
        assert all(same(a, b) for a, b in zip(rest, expected[number : number + len(rest)], strict=True))


@pytest.mark.fault(35, 37, 42)
def test_resume_on_another_layout_and_several_times_in_one_epoch(shards):
    made = data(shards)
    expected = []
    for item in made.train_dataloader():
        expected.append(flat(list(item)))
    state = data(shards).state_dict()
    for step, (accumulate, workers) in enumerate([(3, 0), (1, 2), (2, 1), (4, 0)]):
        part = data(shards, accumulate=accumulate, workers=workers)
        part.load_state_dict(state)
        assert same(flat(list(next(iter(part.train_dataloader())))), expected[step])  # prefetched steps are not consumed
        part.advance()
        state = part.state_dict()
    assert (state["epoch"], state["samples"]) == (1, 0)


@pytest.mark.fault(38, 39)
def test_the_state_is_small_and_checked(shards, tmp_path):
    made = data(shards)
    made.advance()
    state = made.state_dict()
    assert len(json.dumps(state)) < 400
    for change, message in [
        ({"batch_size": 10}, "trained with data.batch_size=12, not 10"),
        ({"seed": 6}, "trained with data.seed=5, not 6"),
        ({"captions": "all"}, "data.captions=sample"),
        ({"block": 3}, "data.block=2"),
    ]:
        with pytest.raises(ResumeError, match=message):
            data(shards, **change).load_state_dict(state)
    other = write_shards(tmp_path / "other", (30, 20))
    with pytest.raises(ResumeError, match=r"the training shards are not those of the checkpoint .* data.allow_data_change=true"):
        data(other).load_state_dict(state)
    with pytest.raises(ResumeError, match="lacks fingerprint"):
        data(shards).load_state_dict({name: value for name, value in state.items() if name != "fingerprint"})
    with pytest.raises(ResumeError, match="has version 9"):
        data(shards).load_state_dict({**state, "version": 9})
    half = data(shards, batch_size=6, allow_data_change=True)
    half.load_state_dict(state)
    assert half.cursor.step == 2
    with pytest.raises(ResumeError, match=r"no multiple of data.batch_size=10"):
        data(shards, batch_size=10, allow_data_change=True).load_state_dict(state)
    early = ShardData(str(shards), batch_size=10, text=TextOptions(vocab_size=300), workers=0)
    early.load_state_dict(state)  # before setup: checked then
    with pytest.raises(ResumeError, match="batch_size"):
        early.setup("fit")


def test_half_of_the_coins_of_every_even_stretch(shards):
    batches = whole(shards, 2, 3, 0, steps=4)
    coins = [batch["coins"] for batch in batches]
    assert all(sum(found[place : place + 2]) == 1 for found in coins for place in range(0, 12, 2))
    assert len({tuple(found) for found in coins}) > 1


def test_other_samples_are_uniform_and_never_itself(shards):
    made = data(shards)
    loader = made.train_dataloader()
    others: dict[str, int] = {}
    for epoch in range(12):
        made.cursor.move(Place(epoch))
        for item in loader:
            for other in item[0].targets["probe"].others:
                key = other.split("/")[0]
                others[key] = others.get(key, 0) + 1
    counts = np.array([others.get(f"k{n:05d}", 0) for n in range(50)])
    expected = 12 * 48 / 50
    assert ((counts - expected) ** 2 / expected).sum() < 85  # chi-square, 49 degrees of freedom, p = 0.001
