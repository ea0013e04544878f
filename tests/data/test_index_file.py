"""The saved index: damage of it is made good, and it is not made anew over damage of its shard."""

from __future__ import annotations

import json
import os
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.shards import sample, write_tar

from mmpretrain.cli.data import run as data
from mmpretrain.data import index as indexes
from mmpretrain.data import manifest
from mmpretrain.data.errors import DataError


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "in" / "00000.tar", [member for n in range(40) for member in sample(n)])


def same(a: indexes.ShardIndex, b: indexes.ShardIndex) -> bool:
    return all(np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y for x, y in zip(a, b, strict=True))


@pytest.mark.fault(4)
@pytest.mark.parametrize("large", [False, True])
def test_no_flipped_bit_of_an_index_is_believed(shard, monkeypatch, large):
    if large:  # mapped rather than read
        monkeypatch.setattr("mmpretrain.data.mapped._SMALL", 0)
    first = indexes.build(shard)
    indexes.save(first, target := indexes.index_path(shard))
    sound, rng = target.read_bytes(), random.Random(0)
    refused = 0
    for at in rng.sample(range(len(sound)), 200) + list(range(len(sound) - 60, len(sound))):
        damaged = bytearray(sound)
        damaged[at] ^= 1 << rng.randrange(8)
        target.write_bytes(damaged)
        found = indexes.load(shard, target)
        refused += found is None
        assert found is None or same(found, first), at  # a bit of a time stamp in the zip changes nothing
    assert refused > 200
    for size in range(0, len(sound), len(sound) // 40):
        target.write_bytes(sound[:size])
        assert indexes.load(shard, target) is None
    assert same(indexes.open_index(shard), first) and indexes.load(shard, target) is not None


def copied(shard: Path, folder: Path) -> Path:
    """A shard and its index, as ``cp -r`` leaves them: with times of their own."""
    indexes.open_index(shard)
    folder.mkdir()
    for path in (shard, indexes.index_path(shard)):
        shutil.copyfile(path, folder / path.name)
    os.utime(folder / shard.name, ns=(1, 10**18))
    return folder / shard.name


def flip(path: Path, member: int) -> None:
    """A bit of the payload of a member."""
    with tarfile.open(path) as archive:
        at = archive.getmembers()[member].offset_data + 30
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


@pytest.mark.fault(4)
def test_an_index_is_not_made_anew_over_a_flipped_bit(shard, tmp_path):
    copy = copied(shard, tmp_path / "out")
    assert indexes.open_index(copy).digest == indexes.open_index(shard).digest  # newer, the same bytes
    flip(copy, 3 * 7)
    message = r"00000\.tar key 'k00007': the bytes of \w+ at offset \d+ changed since the shard was indexed; copy the shard again"
    for _ in range(2):
        with pytest.raises(DataError, match=message):
            indexes.open_index(copy)
    assert data(["data", "index", str(copy), "--workers", "1", "--quiet", "--refresh"]) == 0
    assert len(indexes.open_index(copy)) == 40


def test_a_shard_written_anew_gets_a_new_index(shard):
    indexes.open_index(shard)
    write_tar(shard, [member for n in range(40) for member in sample(n, f"j{n:05d}")])
    assert indexes.open_index(shard).key(0) == "j00000"


@pytest.mark.fault(4)
def test_an_index_is_not_made_of_bytes_that_differ_from_the_manifest(shard):
    (shard.parent / manifest.FILE).write_text(json.dumps({"shards": [{"file": shard.name, "sha256": manifest.sha256(shard)}]}))
    assert len(indexes.open_index(shard)) == 40
    indexes.index_path(shard).unlink()
    flip(shard, 0)
    with pytest.raises(DataError, match=r"00000\.tar: its sha256 is not that of its manifest\.json; copy the shard again"):
        indexes.open_index(shard)
    (shard.parent / manifest.FILE).write_text("[" * 9)
    assert len(indexes.open_index(shard)) == 40
