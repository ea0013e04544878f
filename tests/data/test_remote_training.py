"""Batches of remote shards are those of local ones, also where the cache holds a part of the set only, and whatever is fetched ahead."""

from __future__ import annotations

import pytest
from helpers.batches import data, flat, same
from helpers.servers import http_server
from helpers.shards import write_shards

from mmpretrain.data.plan import Plan
from mmpretrain.data.remote_store import Store
from mmpretrain.data.retry import RemoteOptions

pytestmark = pytest.mark.usefixtures("own_cache")
SIZES = (5, 4, 3, 6, 2, 4)


@pytest.fixture
def served(tmp_path):
    write_shards(tmp_path / "served", SIZES)
    with http_server(tmp_path / "served") as http:
        yield http


def micro_batches(made) -> list:
    return [batch for item in made.train_dataloader() for batch in item]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "options",
    [RemoteOptions(timeout=60), RemoteOptions("ranges", timeout=60), RemoteOptions(cache_gb=0.000_06, timeout=60)],
    ids=["cache", "ranges", "small-cache"],
)
def test_batches_are_those_of_local_shards(served, workers, options):
    here = data(served.folder, batch_size=4, block=2, workers=workers)
    there = data(served.url(), batch_size=4, block=2, workers=workers, remote=options)
    assert there.fingerprint == here.fingerprint
    for _ in range(2):
        assert same(flat(micro_batches(here)), flat(micro_batches(there)))


def test_the_plan_names_the_shards_to_come():
    plan = Plan([4] * 10, 4, seed=1, block=3)
    order = [plan.locate(0, [position])[0][0] for position in range(40)]
    for position in (0, 11, 12, 25, 39):
        coming = plan.coming(0, position)
        block = position // 12
        assert set(order[block * 12 : (block + 1) * 12]) == set(coming[:3] if block < 3 else coming[:1])
        following = order[(block + 1) * 12 : (block + 2) * 12] if block < 3 else []
        assert set(following) <= set(coming) and len(set(coming)) == len(coming)
    last = plan.coming(0, 39)
    assert {plan.locate(1, [position])[0][0] for position in range(12)} <= set(last)


def test_shards_to_come_are_fetched_ahead_and_others_are_not(served, monkeypatch):
    wanted = []
    monkeypatch.setattr(Store, "want", lambda _, remotes: wanted.append([one.name for one in remotes]))
    made = data(served.url(), batch_size=4, block=2, workers=0, remote=RemoteOptions(timeout=60))
    next(iter(made.train_dataloader()))
    plan = made.plan
    assert wanted == [[f"{shard:05d}.tar" for shard in plan.coming(0, 0)]] and len(wanted[0]) == 4


def test_a_sample_of_a_shard_that_is_not_to_come_is_read_by_ranges(served, own_cache):
    data(served.folder)
    made = data(served.url(), workers=0, remote=RemoteOptions(timeout=60))
    made.reader.prefetch([0, 1])
    assert made.reader.read(12).key == "k00012"  # of shard 3, as a negative would be
    assert made.reader.read(0).key == "k00000"
    made.reader.close()
    names = {path.name[17:] for path in (own_cache / "shards").iterdir() if not path.name.startswith(".")}
    assert "00000.tar" in names and "00003.tar" not in names
