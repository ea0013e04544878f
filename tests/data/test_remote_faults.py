"""Faults 21 to 26 of the matrix, on real servers: cut downloads, bad answers, equal names, full disks, many processes, replaced shards."""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.servers import http_server
from helpers.shards import write_shards

from mmpretrain.data import retry
from mmpretrain.data.errors import DataError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.remote import Replaced
from mmpretrain.data.retry import RemoteError, RemoteOptions
from mmpretrain.data.shard_cache import CacheFull
from mmpretrain.data.sources import shards

FAST = RemoteOptions(tries=4, deadline=120, timeout=60)


@pytest.fixture
def served(tmp_path, own_cache, monkeypatch):
    monkeypatch.setattr(retry, "_FIRST", 0.01)
    write_shards(tmp_path / "served", (3, 3))
    with http_server(tmp_path / "served") as http:
        yield http


def read(places, options=FAST) -> list[str]:
    reader = ShardReader(places, remote=options)
    return [reader.read(number).key for number in range(len(reader))]


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "shards").iterdir())


@pytest.mark.fault(21)
@pytest.mark.parametrize("sizes", [True, False], ids=["with-size", "without-size"])
def test_a_cut_download_is_tried_again_and_never_seen(served, own_cache, sizes):
    served.sizes = sizes
    places = shards(served.url("00000.tar"), options=FAST)
    served.cuts = 2
    if sizes:
        assert read(places) == ["k00000", "k00001", "k00002"] and served.gets("00000.tar") == 3
    else:  # nothing tells that it is cut but the archive itself
        with pytest.raises(DataError, match=rf"{served.url('00000.tar')}: .*cut"):
            read(places)
        served.cuts = 0
        assert read(places) == ["k00000", "k00001", "k00002"]
    assert files(own_cache) == [places[0].cached]


@pytest.mark.fault(21)
def test_a_download_that_is_always_cut_leaves_nothing(served, own_cache):
    places = shards(served.url("00000.tar"), options=FAST)
    served.cuts = 99
    with pytest.raises(RemoteError, match=r"00000\.tar: the connection was cut before the end after 4 tries in \d+ s; check the network"):
        read(places)
    assert files(own_cache) == []


@pytest.mark.fault(22)
@pytest.mark.parametrize("status", [404, 403, 503, 500, 429])
def test_a_burst_of_bad_answers_passes(served, status):
    served.statuses = [status, status]
    places = shards(served.url("00000.tar"), options=FAST)
    served.statuses = [status, status]
    assert len(read(places)) == 3


@pytest.mark.fault(22)
@pytest.mark.parametrize(
    "status,message",
    [
        (404, "HTTP 404 after 3 tries .*check the address"),
        (403, "HTTP 403 after 3 tries .*check the credentials and the right"),
        (503, "HTTP 503 after 4 tries .*the server fails; try again later"),
    ],
)
def test_bad_answers_that_stay_are_told_with_status_and_tries(served, status, message):
    places = shards(served.url("00000.tar"), options=FAST)
    served.always = {"00000.tar": status}
    with pytest.raises(RemoteError, match=rf"{served.url('00000.tar')}: {message}") as caught:
        read(places)
    assert caught.value.status == status and "\n" not in str(caught.value)


@pytest.mark.fault(22)
def test_no_try_starts_after_the_deadline(monkeypatch):
    clock = SimpleNamespace(now=0.0, slept=[])
    monkeypatch.setattr(retry.time, "monotonic", lambda: clock.now)

    def sleep(seconds: float) -> None:
        clock.slept.append(seconds)
        clock.now += seconds

    def fail() -> None:
        clock.now += 1
        raise ConnectionResetError("gone")

    monkeypatch.setattr(retry.time, "sleep", sleep)
    options = RemoteOptions(tries=100, deadline=60)
    with pytest.raises(RemoteError, match=r"place: gone \(ConnectionResetError\) after \d+ tries in \d+ s; check the network"):
        retry.retried(fail, "place", (OSError,), options)
    assert clock.now - 1 <= 60 and len(clock.slept) > 3
    bases = [min(30, 0.5 * 2**n) for n in range(len(clock.slept))]
    assert all(0.5 * base <= slept <= 1.5 * base for base, slept in zip(bases, clock.slept)), "doubled, with jitter"
    assert clock.slept == [retry.pause("place", n + 1) for n in range(len(clock.slept))], "the same each time on one machine"
    assert retry.pause("place", 3) != retry.pause("another", 3)


@pytest.mark.fault(22)
def test_a_silent_server_is_given_up_and_asked_again(served):
    options = RemoteOptions(tries=50, deadline=120, timeout=1)
    places = shards(served.url("00000.tar"), options=options)
    served.hold.clear()

    def answers_when_asked_again() -> None:
        until = time.monotonic() + 60
        while served.gets("00000.tar") < 2 and time.monotonic() < until:
            time.sleep(0.05)
        served.hold.set()

    server = threading.Thread(target=answers_when_asked_again)
    server.start()
    assert len(read(places, options)) == 3 and served.gets("00000.tar") > 1
    server.join()


@pytest.mark.fault(22)
def test_no_server_at_all_is_told():
    with pytest.raises(RemoteError, match=r"http://127\.0\.0\.1:9/x\.tar: .*onnect.* after 2 tries.*check the network and the address"):
        shards("http://127.0.0.1:9/x.tar", options=RemoteOptions(tries=2, deadline=120, timeout=60))


@pytest.mark.fault(23)
def test_sets_with_equal_base_names_never_share_a_copy(served, own_cache):
    write_shards(served.folder / "a", (2,), more={"who": "a"})
    write_shards(served.folder / "b", (2,), more={"who": "b"})
    reader = ShardReader(shards([served.url("a/00000.tar"), served.url("b/00000.tar")], options=FAST), remote=FAST)
    assert [reader.read(number).meta["who"] for number in range(4)] == ["a", "a", "b", "b"]
    assert len(files(own_cache)) == 2 and {name[17:] for name in files(own_cache)} == {"00000.tar"}


@pytest.mark.fault(24)
def test_a_full_disk_falls_back_to_ranges(served, own_cache, monkeypatch, capsys):
    ShardReader(sorted(served.folder.glob("*.tar")))  # indexes beside the shards
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert len(read(shards(served.url(), options=FAST))) == 6
    said = capsys.readouterr().err
    assert f"{own_cache}/shards: the disk has no room for" in said and "is read sample by sample" in said
    assert files(own_cache) == []


@pytest.mark.fault(24)
def test_a_full_disk_without_ranges_names_the_folder(served, own_cache, monkeypatch):
    ShardReader(sorted(served.folder.glob("*.tar")))
    served.ranges = False
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CacheFull, match=rf"{own_cache}/shards: the disk has no room .*; raise data.remote.cache_gb, set MMPRETRAIN_CACHE"):
        read(shards(served.url(), options=FAST))


@pytest.mark.fault(24)
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
def test_a_disk_that_fills_during_a_download(served, own_cache, ranges):
    ShardReader(sorted(served.folder.glob("*.tar")))
    places = shards(served.url("00000.tar"), options=FAST)
    ShardReader(places, remote=FAST)  # the index is kept
    served.ranges = ranges
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        if ranges:
            assert len(read(places)) == 3
        else:
            with pytest.raises(CacheFull, match=rf"{own_cache}/shards: no room for .*File too large"):
                read(places)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(own_cache) == []


def _fetch(places, barrier, results) -> None:
    barrier.wait(300)
    results.put(read(places))


@pytest.mark.fault(25)
def test_eight_processes_fetch_a_shard_once(served, own_cache):
    places = shards(served.url(), options=FAST)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(8), context.Queue()
    started = [context.Process(target=_fetch, args=(places, barrier, results)) for _ in range(8)]
    for process in started:
        process.start()
    found = [results.get(timeout=300) for _ in started]
    for process in started:
        process.join(60)
    assert all(keys == [f"k{n:05d}" for n in range(6)] for keys in found)
    assert served.gets("00000.tar") == served.gets("00001.tar") == 1
    assert files(own_cache) == sorted(place.cached for place in places)


@pytest.mark.fault(26)
@pytest.mark.parametrize("options", [FAST, RemoteOptions("ranges", tries=2, deadline=120, timeout=60)], ids=["cache", "ranges"])
def test_a_shard_that_is_replaced_during_the_run_is_an_error(served, own_cache, options):
    ShardReader(sorted(served.folder.glob("*.tar")))
    reader = ShardReader(shards(served.url("00001.tar"), options=options), remote=options)
    write_shards(served.folder, (3, 3), more={"new": True})  # of the same size
    with pytest.raises(Replaced, match=rf"{served.url('00001.tar')}: the shard was replaced on the server during the run \(it was \d+"):
        reader.read(0)
    assert not (own_cache / "shards").exists() or files(own_cache) == []


@pytest.mark.fault(26)
def test_a_new_run_reads_the_new_shard_beside_the_old_copy(served, own_cache):
    old = ShardReader(shards(served.url("00000.tar"), options=FAST), remote=FAST)
    old.read(0)
    write_shards(served.folder, (3, 3), more={"new": True})
    new = ShardReader(shards(served.url("00000.tar"), options=FAST), remote=FAST)
    assert new.read(0).meta["new"] and "new" not in old.read(1).meta and new.fingerprint != old.fingerprint
    assert len(files(own_cache)) == 2


def test_a_shard_that_differs_from_its_manifest_is_refused(served, own_cache):
    (served.folder / "manifest.json").write_text('{"shards": [{"file": "00000.tar", "sha256": "0"}, {"file": "00001.tar", "bytes": 7}]}')
    for name, message in (("00000.tar", "its sha256 is not that of its manifest.json"), ("00001.tar", "but its manifest.json says 7")):
        with pytest.raises(DataError, match=message):
            read(shards(served.url(name), options=FAST))
    assert files(own_cache) == []
    (served.folder / "manifest.json").write_text("[" * 10)
    assert len(read(shards(served.url("00000.tar"), options=FAST))) == 3


def test_a_damaged_copy_is_fetched_again(served, own_cache):
    places = shards(served.url("00000.tar"), options=FAST)
    assert len(read(places)) == 3
    copy = own_cache / "shards" / places[0].cached
    data = bytearray(copy.read_bytes())
    data[600] ^= 1
    copy.write_bytes(data)
    assert len(read(places)) == 3 and served.gets("00000.tar") == 2
