"""Reading and writing shards by the tools."""

from __future__ import annotations

import json

import pytest
import webdataset
from helpers.shards import sample, write_tar

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data_tools.shards import (
    RawReader,
    fresh_folder,
    read_manifest,
    read_samples,
    sha256,
    split_name,
    write_manifest,
    write_shard,
)

SAMPLES = [(f"a/k{n}", {"txt": f"text {n}".encode(), "png": sample(n)[0][1], "json": b'{"n": %d}' % n}) for n in range(3)]


def test_what_is_written_is_read_by_us_and_by_webdataset(tmp_path):
    facts = write_shard(tmp_path / "00000.tar", SAMPLES)
    assert facts == {
        "file": "00000.tar",
        "samples": 3,
        "bytes": (tmp_path / "00000.tar").stat().st_size,
        "sha256": sha256(tmp_path / "00000.tar"),
    }
    assert [(key, dict(sorted(members.items()))) for key, members in read_samples(tmp_path / "00000.tar")] == [
        (key, dict(sorted(members.items()))) for key, members in SAMPLES
    ]
    theirs = list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False, empty_check=False))
    assert [one["__key__"] for one in theirs] == ["a/k0", "a/k1", "a/k2"] and theirs[1]["txt"] == b"text 1"
    reader = ShardReader([tmp_path / "00000.tar"])
    assert reader.read(2).captions == ("text 2",) and reader.read(2).meta == {"n": 2}
    assert write_shard(tmp_path / "again.tar", SAMPLES)["sha256"] == facts["sha256"]


def test_a_shard_appears_complete_or_not_at_all(tmp_path):
    def broken():
        yield SAMPLES[0]
        raise DataError("the second one is missing")

    with pytest.raises(DataError):
        write_shard(tmp_path / "00000.tar", broken())
    assert list(tmp_path.iterdir()) == []


def test_two_samples_of_one_key_are_refused(tmp_path):
    with pytest.raises(DataError, match="two samples have the key 'a/k1'; make one set of the sources first, mmpretrain data mix"):
        write_shard(tmp_path / "0.tar", [*SAMPLES, SAMPLES[1]])
    assert not list(tmp_path.iterdir())


def test_raw_members_are_checked(tmp_path):
    path = write_tar(tmp_path / "0.tar", [*sample(0), ("k00000.pyd", b"not read"), *sample(1)])
    raw = RawReader([path])
    assert raw.read(path, 1)[0] == "k00001" and set(raw.read(path, 0)[1]) == {"png", "txt", "json"}
    data = bytearray(path.read_bytes())
    data[data.index(b"number 1")] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    with pytest.raises(BadSample, match=r"0.tar key 'k00001': the bytes of txt changed"):
        raw.read(path, 1)


def test_manifest(tmp_path):
    assert read_manifest(tmp_path) is None
    write_manifest(tmp_path, [write_shard(tmp_path / "00000.tar", SAMPLES)], {"tool": "test"})
    assert read_manifest(tmp_path)["samples"] == 3 and read_manifest(tmp_path)["shards"][0]["file"] == "00000.tar"
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": [3]}))
    with pytest.raises(DataError, match="not a manifest"):
        read_manifest(tmp_path)


def test_output_folder(tmp_path):
    out = tmp_path / "out"
    assert fresh_folder(out, ".state").is_dir()
    for left in (".00000.tar.x3", ".manifest.json.x3"):
        (out / left).touch()
    fresh_folder(out, ".state")  # of an interrupted run
    assert [path.name for path in out.iterdir()] == [".state"]
    (tmp_path / "file").touch()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(DataError, match="choose another --out"):
            fresh_folder(taken, ".state")


def test_names():
    assert split_name("a.b/c/k1.IMG0.PNG") == ("a.b/c/k1", "img0.png")
