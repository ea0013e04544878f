"""The cache of shards: bounded, the longest unused go first, what is open stays, what killed processes left goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mmpretrain.data.cache import locked
from mmpretrain.data.errors import DataError
from mmpretrain.data.remote_store import _Ahead
from mmpretrain.data.shard_cache import CacheFull, ShardCache

pytestmark = pytest.mark.usefixtures("own_cache")


def put(cache: ShardCache, name: str, size: int = 100, known: bool = True, **options) -> bool:
    """Fetch a made-up shard of ``size`` bytes."""

    def receive(part: Path, told) -> None:
        for _ in range(0, size, 10):
            told(10)
            with open(part, "ab") as file:
                file.write(b"x" * 10)

    return cache.fetch(name, size if known else None, receive, **options)


def age(cache: ShardCache, *names: str) -> None:
    """Make the copies old, the first the oldest."""
    for place, name in enumerate(names):
        os.utime(cache.path(name), (1000 + place, 1000 + place))


def names(cache: ShardCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir())


def test_the_longest_unused_copy_goes_first():
    cache = ShardCache(300)
    for name in "abc":
        assert put(cache, name) and cache.has(name)
    age(cache, "a", "b", "c")
    cache.close(cache.open("a"))  # used again
    cache.path("b" + ".idx.npz").touch()
    put(cache, "d")
    assert names(cache) == ["a", "c", "d"] and cache.usage() == (3, 300)


def test_open_copies_stay_and_stay_readable():
    cache = ShardCache(200)
    put(cache, "a"), put(cache, "b")
    age(cache, "a", "b")
    pinned = cache.open("a")
    put(cache, "c")
    assert names(cache) == ["a", "c"]
    other = cache.open("c")
    with pytest.raises(
        CacheFull, match=r"own-cache/shards: d needs 0.00 MB and 0.00 MB are in use, more than data.remote.cache_gb=2e-07; raise"
    ):
        put(cache, "d")
    assert os.pread(pinned, 200, 0) == b"x" * 100
    cache.close(pinned), cache.close(other)
    assert put(cache, "d") and not cache.has("a")


def test_copies_of_the_plan_go_last():
    cache = ShardCache(200)
    put(cache, "a"), put(cache, "b")
    age(cache, "a", "b")
    put(cache, "c", keep={"a"})
    assert names(cache) == ["a", "c"]
    with pytest.raises(CacheFull):
        put(cache, "d", keep={"a", "c"}, force=False)
    assert names(cache) == ["a", "c"]
    put(cache, "d", keep={"a", "c"})
    assert names(cache) == ["c", "d"]


def test_a_shard_larger_than_the_cache_is_refused():
    cache = ShardCache(50)
    with pytest.raises(CacheFull, match="a needs"):
        put(cache, "a")
    with pytest.raises(CacheFull, match="a needs"):
        put(cache, "a", known=False)
    assert names(cache) == []


def test_a_download_of_unknown_size_makes_room_while_it_grows():
    cache = ShardCache(200)
    put(cache, "a"), put(cache, "b")
    age(cache, "a", "b")
    put(cache, "c", size=90, known=False)
    assert names(cache) == ["b", "c"] or names(cache) == ["c"]


def test_what_fails_leaves_nothing():
    cache = ShardCache(1000)

    def receive(part: Path, told) -> None:
        part.write_bytes(b"half")
        raise DataError("gone")

    with pytest.raises(DataError, match="gone"):
        cache.fetch("a", 100, receive)
    assert names(cache) == []


def test_nobody_waits_for_a_download_ahead():
    cache = ShardCache(1000)
    with locked(str(cache.path("a"))):
        assert put(cache, "a", wait=False) is False
    assert put(cache, "a", wait=False) is True


def test_fetching_ahead_goes_on_behind_a_shard_that_fails():
    fetched, done = [], threading.Event()

    def fetch(shard: str) -> None:
        fetched.append(shard)
        if shard == "a":
            raise FileNotFoundError("someone cleared the cache")
        done.set()

    ahead = _Ahead(fetch)
    ahead.put(["a", "b"])
    assert done.wait(20) and fetched == ["a", "b"]
    ahead.put(None)


def test_a_folder_that_cannot_be_made_is_named(own_cache):
    own_cache.write_text("a file")
    with pytest.raises(CacheFull, match=rf"{own_cache}/shards cannot be written .*set MMPRETRAIN_CACHE to a folder that can"):
        put(ShardCache(1000), "a")


_HALF = """
import sys, time
from mmpretrain.data.shard_cache import ShardCache
def receive(part, told):
    part.write_bytes(b"x" * 40)
    print("there", flush=True)
    time.sleep(60)
ShardCache(1000).fetch("a", 100, receive)
"""


@pytest.mark.fault(21)
def test_a_killed_download_frees_its_lock_its_room_and_its_file(own_cache):
    cache = ShardCache(150)
    child = subprocess.Popen(
        [sys.executable, "-c", _HALF], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert child.stdout.readline() == b"there\n"
    assert len(names(cache)) == 1 and put(cache, "a", wait=False) is False
    with pytest.raises(CacheFull):  # 100 bytes are promised to it
        put(cache, "b")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert put(cache, "b") and names(cache) == ["b"]
    assert put(cache, "a") and names(cache) == ["a"]
