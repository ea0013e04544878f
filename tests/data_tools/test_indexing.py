"""``mmpretrain data index``."""

from __future__ import annotations

import re

import pytest
from helpers.shards import sample, write_tar

from mmpretrain.cli.data import run as data
from mmpretrain.data.errors import DataError
from mmpretrain.data.index import index_path
from mmpretrain.data.reader import ShardReader
from mmpretrain.data_tools import indexing
from mmpretrain.data_tools.indexing import index

LOCAL = {"workers": 1, "progress": False}


def test_indexes_are_made_once_and_refreshed(tmp_path, capsys):
    paths = [write_tar(tmp_path / f"{n}.tar", [*sample(2 * n), *sample(2 * n + 1), (f"x{n}.pyd", b"")]) for n in range(2)]
    assert data(["data", "index", str(tmp_path), "--workers", "1", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "4 samples in 2 shards" in shown and "2 indexes made, 0 were fresh" in shown and "never read: 2 x pyd" in shown
    assert ShardReader(paths).fingerprint[:16] in shown
    before = index_path(paths[0]).stat().st_mtime_ns
    assert [one["made"] for one in index(paths, engine=LOCAL).values()] == [False, False]
    assert index_path(paths[0]).stat().st_mtime_ns == before
    write_tar(paths[1], [*sample(2), *sample(3), ("bad.txt", b"\xff")])
    changed = index(paths, engine=LOCAL)
    assert [one["made"] for one in changed.values()] == [False, True] and changed[paths[1]]["bad"] == 1
    assert [one["made"] for one in index(paths, refresh=True, engine=LOCAL).values()] == [True, True]


def test_a_damaged_shard_is_refused(tmp_path):
    path = write_tar(tmp_path / "0.tar", sample(0))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"0.tar: .*cut"):
        index([path], engine=LOCAL)


@pytest.mark.parametrize("tool", ["index", "check", "stats", "split", "mix", "filter", "dedup", "tokenizer", "scenegraph"])
def test_help_has_an_example(tool, capsys):
    with pytest.raises(SystemExit) as ended:
        data(["data", tool, "--help"])
    assert ended.value.code == 0 and re.search(rf"examples?:\n  mmpretrain data {tool} ", capsys.readouterr().out)


def test_interrupted(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(indexing, "main", interrupted)
    assert data(["data", "index", "x"]) == 130 and "was interrupted" in capsys.readouterr().err
