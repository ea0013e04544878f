"""Streams are spooled once and then are shards like others; webdataset hands over their bytes and decodes nothing."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys

import pytest
import webdataset as wds
from helpers.shards import picture, write_shards

from mmpretrain.data import stream
from mmpretrain.data.errors import DataError
from mmpretrain.data.reader import ShardReader, open_reader
from mmpretrain.data.retry import RemoteError, RemoteOptions
from mmpretrain.data.shard_cache import CacheFull
from mmpretrain.data.sources import expand, shards

pytestmark = pytest.mark.usefixtures("own_cache")
FAST = RemoteOptions(tries=2, deadline=120, timeout=60)


@pytest.fixture
def folder(tmp_path):
    return write_shards(tmp_path / "set", (3, 2))


def content(reader: ShardReader) -> list:
    return [reader.read(number) for number in range(len(reader))]


def test_a_command_gives_the_samples_of_its_tar(folder, tmp_path, capsys):
    source = f"pipe:echo ran >> {tmp_path}/ran; cat {folder}/{{00000..00001}}.tar"
    for _ in range(2):
        reader = open_reader(source, remote=FAST, allow_pipe=True)
        assert content(reader) == content(ShardReader(expand(str(folder))))
    assert (tmp_path / "ran").read_text() == "ran\nran\n", "once for each shard, then the copy is there"
    assert reader.fingerprint == ShardReader(expand(str(folder))).fingerprint
    assert reader.name(0, 0) == "pipe:echo ... key 'k00000'"
    assert (
        "nothing tells the version of pipe:echo ... and 1 more: resuming is exact while the copy is in the cache" in capsys.readouterr().err
    )


def test_a_command_that_wrote_other_bytes_is_another_set(folder, own_cache):
    first = open_reader(f"pipe:cat {folder}/00000.tar", remote=FAST, allow_pipe=True)
    write_shards(folder, (7, 2))
    assert open_reader(f"pipe:cat {folder}/00000.tar", remote=FAST, allow_pipe=True).fingerprint == first.fingerprint
    copy = own_cache / "shards" / first.paths[0].cached
    copy.unlink()  # evicted
    with pytest.raises(DataError, match="its size changed since it was indexed"):
        first.read(0)
    assert len(open_reader(f"pipe:cat {folder}/00000.tar", remote=FAST, allow_pipe=True)) == 7


@pytest.mark.parametrize(
    "command,message",
    [
        ("exit 3", r"pipe:exit \.\.\.: the command ended with status 3; run it by hand"),
        ("true", r"pipe:true: the command wrote nothing"),
        ("head -c 3000 SHARD", r"pipe:head \.\.\.: .*cut"),
        ("cat SHARD | gzip", r"pipe:cat \.\.\.: not a plain tar archive"),
        ("curl https://me:hunter2@127.0.0.1:9/", r"pipe:curl \.\.\.: the command ended with status \d+"),
    ],
)
def test_a_command_that_fails_is_told_without_its_secrets(folder, own_cache, command, message):
    with pytest.raises(DataError, match=message) as caught:
        open_reader(f"pipe:{command.replace('SHARD', str(folder / '00000.tar'))}", remote=FAST, allow_pipe=True)
    assert "hunter2" not in str(caught.value) and list((own_cache / "shards").iterdir()) == []


def test_an_endless_command_is_refused_and_ended(own_cache):
    with pytest.raises(CacheFull, match=r"own-cache/shards: .*-pipe.tar needs .*more than data.remote.cache_gb=0.001.* is not at its end"):
        open_reader("pipe:while true; do head -c 100000 /dev/zero; done", remote=RemoteOptions(cache_gb=0.001), allow_pipe=True)
    assert list((own_cache / "shards").iterdir()) == []


def test_webdataset_with_its_lock_runs_no_command(folder, tmp_path):
    code = "from mmpretrain.data.reader import open_reader; open_reader('pipe:touch canary', allow_pipe=True)"
    environment = {**os.environ, "WDS_SECURE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "webdataset refuses to run commands, since WDS_SECURE is set" in done.stderr and not (tmp_path / "canary").exists()


class _Input:
    """Standard input made of bytes."""

    closed = False

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False


def test_standard_input_is_a_shard(folder, own_cache, monkeypatch, capsys):
    monkeypatch.setattr(stream, "_INPUT", {})
    monkeypatch.setattr(sys, "stdin", _Input((folder / "00001.tar").read_bytes()))
    reader = open_reader(["-", str(folder / "00000.tar")], remote=FAST)
    assert [one.key for one in content(reader)] == ["k00003", "k00004", "k00000", "k00001", "k00002"]
    assert f"standard input is kept as {own_cache}/shards/" in capsys.readouterr().err
    assert shards("-", options=FAST) == (reader.paths[0],), "it is read once"


@pytest.mark.parametrize(
    "data,rank,message",
    [(b"", "0", "nothing came in"), (b"x", "1", "can be read by one process only"), (None, "0", "but nothing comes in; ")],
)
def test_standard_input_that_cannot_be_read(monkeypatch, data, rank, message):
    monkeypatch.setattr(stream, "_INPUT", {})
    monkeypatch.setattr(sys, "stdin", _Input(data) if data is not None else None)
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(DataError, match=message):
        shards("-", options=FAST)


def test_standard_input_that_is_too_long(monkeypatch, own_cache):
    monkeypatch.setattr(stream, "_INPUT", {})
    monkeypatch.setattr(sys, "stdin", _Input(bytes(3_000_000)))
    with pytest.raises(CacheFull, match=r"standard input does not fit the cache: .*data\.remote\.cache_gb=0\.001"):
        shards("-", options=RemoteOptions(cache_gb=0.001))


def test_shards_of_webdatasets_writer_are_read(tmp_path):
    with wds.ShardWriter(str(tmp_path / "%05d.tar"), maxcount=3, verbose=0) as writer:
        for number in range(5):
            writer.write({"__key__": f"w{number}", "png": picture(number), "txt": f"number {number}", "json": {"number": number}})
    reader = ShardReader(expand(str(tmp_path)))
    assert [(one.key, one.captions, one.meta["number"]) for one in content(reader)] == [(f"w{n}", (f"number {n}",), n) for n in range(5)]
    assert [one.images[0] for one in content(reader)] == [picture(n) for n in range(5)]


def test_webdataset_reads_a_spooled_stream_like_the_shard_that_it_is(folder, own_cache):
    reader = open_reader(f"pipe:cat {folder}/00000.tar", remote=FAST, allow_pipe=True)
    copy = own_cache / "shards" / reader.paths[0].cached
    theirs = list(wds.WebDataset(str(copy), shardshuffle=False))
    assert [one["__key__"] for one in theirs] == [one.key for one in content(reader)]
    assert [one["png"] for one in theirs] == [one.images[0] for one in content(reader)]


@pytest.mark.fault(15)
def test_nothing_in_a_stream_is_executed(tmp_path):
    class Touch:
        def __reduce__(self) -> tuple:
            return open, (str(tmp_path / "canary"), "w")

    from helpers.shards import sample, write_tar

    bad = pickle.dumps(Touch())
    members = [*sample(0), *((f"k00000.{name}", bad) for name in ("pyd", "pickle", "pkl", "pth", "pkl.gz", "meta.pyd"))]
    write_tar(tmp_path / "x.tar", members)
    assert len(content(open_reader(f"pipe:cat {tmp_path}/x.tar", remote=FAST, allow_pipe=True))) == 1
    assert not (tmp_path / "canary").exists()


def test_options_out_of_range_are_refused():
    for options in ({"mode": "both"}, {"cache_gb": 0}, {"tries": 0}, {"timeout": 0}):
        with pytest.raises(DataError, match=r"data\.remote"):
            RemoteOptions(**options)
    assert issubclass(RemoteError, DataError)
