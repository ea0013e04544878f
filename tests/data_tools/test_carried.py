"""Samples that a list beside the shards takes out of training stay out when tools write the shards anew."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.shards import sample, write_tar

from mmpretrain.cli.data import run as data
from mmpretrain.data import quarantine
from mmpretrain.data.reader import ShardReader
from mmpretrain.data_tools.derive import _listed

OLD = [
    {"shard": "1.tar", "key": "k00004", "reason": "picture", "detail": "cut", "tool": "check"},
    {"shard": "0.tar", "key": "k00001", "reason": "ugly"},
    {"shard": "0.tar", "key": "gone", "reason": "picture"},
]


def shards(folder: Path) -> Path:
    for start in (0, 3):
        write_tar(folder / f"{start // 3}.tar", [member for n in range(start, start + 3) for member in sample(n)])
    (folder / quarantine.FILE).write_text("".join(json.dumps(line) + "\n" for line in OLD))
    return folder


def left_out(folder: Path) -> set[tuple[str, str]]:
    """(key, reason) of what training leaves out of a folder."""
    reader = ShardReader(sorted(folder.glob("*.tar")))
    found = quarantine.entries(reader)
    assert quarantine.of(reader).reasons.total() == len(found)
    return {(reader.indexes[shard].key(number), entry["reason"]) for (shard, number), entry in found.items()}


def test_tools_that_rewrite(tmp_path, capfd):
    folder, more = shards(tmp_path / "in"), ["--quiet", "--workers", "1", "--shard-size", "2"]
    want = {("k00004", "picture"), ("k00001", "ugly")}
    assert left_out(folder) == want
    assert data(["data", "split", str(folder), "--out", str(tmp_path / "parts"), "--parts", "a=0.5", "b=0.5", *more]) == 0
    assert left_out(tmp_path / "parts/a") | left_out(tmp_path / "parts/b") == want
    assert data(["data", "filter", str(folder), "--out", str(tmp_path / "kept"), "--where", "key != k00001", *more]) == 0
    assert left_out(tmp_path / "kept") == {("k00004", "picture")}
    assert data(["data", "mix", f"x={folder}", "--out", str(tmp_path / "mixed"), *more]) == 0
    assert left_out(tmp_path / "mixed") == {("x/k00004", "picture"), ("x/k00001", "ugly")}
    said = capfd.readouterr().err
    assert f"{tmp_path / 'mixed'}: 2 samples were listed in quarantine.jsonl and are so here; training leaves them out" in said
    (folder / quarantine.FILE).unlink()
    assert data(["data", "mix", f"x={folder}", "--out", str(tmp_path / "whole"), *more]) == 0
    assert not (tmp_path / "whole" / quarantine.FILE).exists()


def test_tools_that_add_a_member(tmp_path):
    paths = sorted(shards(tmp_path).glob("*.tar"))
    views = [(shard, key) for shard, key, _ in _listed({path: {"views": 2} for path in paths})]
    assert views == [("0.tar", "k00001"), ("0.tar", "k00001~2"), ("1.tar", "k00004"), ("1.tar", "k00004~2")]
    assert [key for _, key, _ in _listed({paths[1]: {}})] == ["k00004"]
