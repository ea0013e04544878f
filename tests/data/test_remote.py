"""Remote shards give what local ones give: over HTTP and S3, as copies and by ranges, in this process and in workers."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
from helpers.servers import http_server, s3_server
from helpers.shards import Keys, sample, write_shards, write_tar
from torch.utils.data import DataLoader

from mmpretrain.data import remote as remote_module
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.place import Remote
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.retry import RemoteOptions
from mmpretrain.data.sources import expand, shards

pytestmark = pytest.mark.usefixtures("own_cache")
FAST = RemoteOptions(tries=3, deadline=120, timeout=60)
RANGES = RemoteOptions("ranges", tries=3, deadline=120, timeout=60)


@pytest.fixture
def served(tmp_path):
    write_shards(tmp_path / "served", (5, 4, 3))
    with http_server(tmp_path / "served") as http:
        yield http


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bucket")
    write_shards(folder / "set", (5, 4, 3))
    write_shards(folder / "many", (1,) * 9)
    with s3_server("shards", folder):
        yield folder / "set"


def content(reader: ShardReader) -> list:
    return [reader.read(number) for number in range(len(reader))]


def local(folder) -> ShardReader:
    return ShardReader(expand(str(folder)))


@pytest.mark.parametrize("options", [FAST, RANGES], ids=["cache", "ranges"])
@pytest.mark.parametrize("written", ["", "{00000..00002}.tar", "00000.tar::URL{00001,00002}.tar"])
def test_http_gives_the_samples_of_the_files(served, options, written):
    places = shards(served.url() + written.replace("URL", served.url()), options=options)
    reader = ShardReader(places, remote=options)
    assert [place.name for place in places] == ["00000.tar", "00001.tar", "00002.tar"]
    assert content(reader) == content(local(served.folder)) and reader.fingerprint == local(served.folder).fingerprint


@pytest.mark.parametrize("options", [FAST, RANGES], ids=["cache", "ranges"])
@pytest.mark.parametrize("source", ["s3://shards/set/", "s3://shards/set/{00000..00002}.tar"])
def test_s3_gives_the_samples_of_the_files(bucket, options, source):
    reader = ShardReader(shards(source, options=options), remote=options)
    assert content(reader) == content(local(bucket)) and reader.fingerprint == local(bucket).fingerprint


def test_a_listed_folder_and_single_questions_tell_the_same_versions(bucket):
    many = [f"s3://shards/many/{n:05d}.tar" for n in range(9)]
    assert shards(many, options=FAST) == shards("s3://shards/many/", options=FAST) == tuple(shards(one, options=FAST)[0] for one in many)
    with pytest.raises(DataError, match=r"s3://shards/many/00009\.tar: HTTP 404 after 3 tries.*check the address"):
        shards("s3://shards/many/{00000..00009}.tar", options=FAST)
    with pytest.raises(DataError, match="s3://nowhere/"):
        shards("s3://nowhere/x.tar", options=FAST)


def test_ranges_read_few_bytes_where_the_index_lies_beside_the_shard(served):
    local(served.folder)  # makes the indexes
    reader = ShardReader(shards(served.url("00000.tar"), options=RANGES), remote=RANGES)
    assert reader.read(2) == local(served.folder).read(2)
    assert served.sent["00000.tar"] < 6000 and served.gets("00000.tar") == 2  # one byte to see whether ranges work, one sample
    again = ShardReader(shards(served.url("00000.tar"), options=RANGES), remote=RANGES)
    assert again.read(3).key == "k00003" and served.gets("00000.tar.idx.npz") == 1


def test_an_index_that_is_not_of_the_shard_is_made_again(served):
    write_shards(served.folder / "other", (20,))
    local(served.folder), local(served.folder / "other")
    served.folder.joinpath("other", "00000.tar.idx.npz").replace(served.folder / "00000.tar.idx.npz")
    served.folder.joinpath("00002.tar.idx.npz").write_bytes(b"not an index")
    reader = ShardReader(shards(served.url(), options=FAST), remote=FAST)
    assert content(reader) == content(ShardReader(sorted(served.folder.glob("*.tar"))))


def test_an_index_of_other_bytes_in_equal_number_is_named(served):
    local(served.folder)
    assert served.folder.joinpath("00000.tar").stat().st_size == served.folder.joinpath("00001.tar").stat().st_size
    served.folder.joinpath("00001.tar.idx.npz").replace(served.folder / "00000.tar.idx.npz")
    reader = ShardReader(shards(served.url("00000.tar"), options=FAST), remote=FAST)
    with pytest.raises(BadSample, match=r"the shard was indexed; upload the shard and the index.*delete /.*00000\.tar\.idx\.npz"):
        reader.read(0)
    assert served.gets("00000.tar") == 2, "fetched again once"


def test_a_copy_serves_the_next_run_too(served):
    for _ in range(2):
        assert len(content(ShardReader(shards(served.url("00000.tar"), options=FAST), remote=FAST))) == 5
    assert served.gets("00000.tar") == 1


@pytest.mark.parametrize("context,options", [("fork", FAST), ("fork", RANGES), ("spawn", FAST)], ids=["fork", "fork-ranges", "spawn"])
def test_workers_read_too(served, options, context):
    reader = ShardReader(shards(served.url(), options=options), remote=options)
    first = reader.read(0).key
    workers = 2 if context == "fork" else 1
    loader = DataLoader(Keys(reader), num_workers=workers, batch_size=None, multiprocessing_context=context)
    assert list(loader) == [f"k{n:05d}" for n in range(12)] and first == "k00000"


def test_a_reader_is_pickled_with_its_places(served):
    reader = ShardReader(shards(served.url(), options=FAST), remote=FAST)
    again = pickle.loads(pickle.dumps(reader))  # noqa: S301  (our own bytes)
    assert again.paths == reader.paths and content(again) == content(reader)


def test_local_and_remote_shards_together(served, tmp_path):
    write_shards(tmp_path / "here", (2,), captions=1)
    reader = ShardReader(shards(f"{tmp_path}/here::{served.url('00001.tar')}", options=FAST), remote=FAST)
    assert [len(index) for index in reader.indexes] == [2, 4] and len(content(reader)) == 6


def test_messages_name_a_remote_sample(served):
    reader = ShardReader(shards(served.url("00000.tar"), options=FAST), remote=FAST)
    assert reader.name(0, 1) == f"{served.url('00000.tar')} key 'k00001'"


def test_without_its_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(remote_module, "_backends", {})
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setitem(sys.modules, "gcsfs.retry", None)
    with pytest.raises(DataError, match=r"gs://b/x\.tar: reading it needs the package gcsfs.*pip install 'mmpretrain-vl\[remote\]'"):
        shards("gs://b/x.tar")


def test_names_of_copies_are_plain_and_belong_to_one_version():
    one = Remote("https://host/a/x.tar", 10, "e")
    assert one.cached == Remote("https://user:pw@host/a/x.tar", 10, "e").cached, "credentials change from day to day"
    assert one.cached == Remote("https://host/a/x.tar?X-Amz-Signature=1&X-Amz-Date=2", 10, "e").cached
    others = [
        Remote("https://host/b/x.tar", 10, "e"),
        Remote("https://host/a/x.tar", 11, "e"),
        Remote("https://host/a/x.tar", 10, "f"),
        Remote("https://host/a/x.tar?file=2", 10, "e"),
    ]
    assert len({one.cached, *(other.cached for other in others)}) == 5
    assert len(one.cached) == 16 + 1 + 5 and one.cached.endswith("-x.tar")


@pytest.mark.fault(18)
def test_names_of_members_lead_nowhere(tmp_path, own_cache):
    members = [(f"../../../out{kind}", data) for (_, data), kind in zip(sample(0), (".png", ".txt", ".json"))]
    members += [(f"/{tmp_path.name}/abs{kind}", data) for (_, data), kind in zip(sample(1), (".png", ".txt", ".json"))]
    write_tar(tmp_path / "served" / "x.tar", members)

    def elsewhere() -> set[Path]:
        found = {*tmp_path.rglob("*"), *tmp_path.parent.iterdir(), *Path("/").iterdir()}
        return {path for path in found if own_cache not in path.parents}

    before = elsewhere()
    with http_server(tmp_path / "served") as http:
        reader = ShardReader(shards(http.url("x.tar"), options=FAST), remote=FAST)
        assert [one.key for one in content(reader)] == ["../../../out", f"/{tmp_path.name}/abs"]
    assert elsewhere() - before == {own_cache}


@pytest.mark.fault(18)
@pytest.mark.parametrize("path", ["..%2F..%2Fetc%2Fx.tar", "a/../../x.tar", "%2Fabs.tar", ".hidden.tar", "x%00y.tar", "a" * 300 + ".tar"])
def test_names_of_servers_lead_nowhere_else(path, own_cache):
    from mmpretrain.data.shard_cache import ShardCache

    cache = ShardCache(10**9)
    made = cache.path(Remote(f"https://host/{path}", 10, "e").cached)
    assert made.parent == own_cache / "shards" and made.resolve().parent == cache.folder.resolve() and len(made.name) <= 100
