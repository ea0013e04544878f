"""``mmpretrain data split``: deterministic parts, groups kept together, restartable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.shards import sample, write_tar

from mmpretrain.cli.data import run as data
from mmpretrain.cli.errors import UserError
from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.shards import read_samples
from mmpretrain.data_tools.split import assign, parse_parts, place, split

LOCAL = {"workers": 1, "progress": False}


def shards(folder: Path, n: int = 40, per: int = 10) -> list[Path]:
    """Samples with a url that four of them share, and the split that someone gave them."""
    return [
        write_tar(
            folder / f"{start // per}.tar",
            [
                member
                for i in range(start, start + per)
                for member in sample(i, key=f"img{i // 2}-{i}", source={"url": f"u{i % 10}"}, split="val" if i % 5 == 0 else "train")
            ],
        )
        for start in range(0, n, per)
    ]


def keys(folder: Path) -> list[str]:
    return [key for path in sorted(folder.glob("*.tar")) for key, _ in read_samples(path)]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_parts_by_key(tmp_path):
    paths = shards(tmp_path / "in")
    counts = split(paths, tmp_path / "a", {"train": 0.7, "val": 0.3}, shard_size=8, engine=LOCAL)
    assert sum(counts.values()) == 40 and 20 <= counts["train"] <= 36
    train, val = keys(tmp_path / "a" / "train"), keys(tmp_path / "a" / "val")
    assert len(train) == counts["train"] and not {*train} & {*val} and len({*train, *val}) == 40
    assert sorted(path.name for path in (tmp_path / "a" / "train").iterdir())[:2] == ["00000.tar", "00001.tar"]
    assert json.loads((tmp_path / "a" / "val" / "manifest.json").read_text())["samples"] == counts["val"]
    assert not (tmp_path / "a" / ".state").exists()
    originals = {key: members for path in paths for key, members in read_samples(path)}
    for path in (tmp_path / "a").rglob("*.tar"):
        assert all(members == originals[key] for key, members in read_samples(path))  # copied byte for byte
    split(paths[1:], tmp_path / "b", {"train": 0.7, "val": 0.3}, engine=LOCAL)  # the part does not depend on the other samples
    assert {*keys(tmp_path / "b" / "val")} == {*val} & {*originals} - {key for key, _ in read_samples(paths[0])}
    split(paths, tmp_path / "c", {"train": 0.7, "val": 0.3}, seed=1, engine=LOCAL)
    assert keys(tmp_path / "c" / "val") != val


def test_groups_stay_together(tmp_path):
    paths = shards(tmp_path / "in")
    split(paths, tmp_path / "a", {"train": 0.5, "val": 0.5}, field="source.url", engine=LOCAL)
    urls = [{int(key.split("-")[1]) % 10 for key in keys(tmp_path / "a" / name)} for name in ("train", "val")]
    assert urls[0] and urls[1] and not urls[0] & urls[1]
    split(paths, tmp_path / "b", {"train": 0.5, "val": 0.5}, pattern=r"^(img\d+)-", engine=LOCAL)
    images = [{key.split("-")[0] for key in keys(tmp_path / "b" / name)} for name in ("train", "val")]
    assert images[0] and images[1] and not images[0] & images[1]


def test_parts_by_the_value_of_a_field(tmp_path):
    assert split(shards(tmp_path / "in"), tmp_path / "a", None, field="split", engine=LOCAL) == {"val": 8, "train": 32}
    assert len(keys(tmp_path / "a" / "val")) == 8


def test_an_interrupted_split_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    paths = shards(tmp_path / "in")
    split(paths, tmp_path / "whole", {"a": 0.5, "b": 0.5}, shard_size=5, engine=LOCAL)
    from mmpretrain.data_tools import rewrite

    real, calls = rewrite.write_shard, []

    def failing(target, samples):
        calls.append(target.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(target, samples)

    monkeypatch.setattr(rewrite, "write_shard", failing)
    with pytest.raises(KeyboardInterrupt):
        split(paths, tmp_path / "half", {"a": 0.5, "b": 0.5}, shard_size=5, engine=LOCAL)
    first = len(calls)
    split(paths, tmp_path / "half", {"a": 0.5, "b": 0.5}, shard_size=5, engine=LOCAL)
    shards_written = len(list((tmp_path / "whole").rglob("*.tar")))
    assert len(calls) - first == shards_written - 3  # the first three were there
    assert tree(tmp_path / "half") == tree(tmp_path / "whole")


def test_command_and_mistakes(tmp_path, capsys):
    shards(tmp_path / "in", 10)
    command = ["data", "split", str(tmp_path / "in"), "--workers", "1", "--quiet"]
    assert data([*command, "--out", str(tmp_path / "out"), "--parts", "train=0.8", "val=0.2"]) == 0
    assert "train" in capsys.readouterr().out
    for more, text in (
        (["--out", str(tmp_path / "out"), "--parts", "a=0.5", "b=0.5"], "exists and is not an empty folder"),
        (["--out", str(tmp_path / "o"), "--parts", "a=0.5", "b=0.6"], "sum to 1.1"),
        (["--out", str(tmp_path / "o"), "--parts", "a=x"], "NAME=SHARE"),
        (["--out", str(tmp_path / "o"), "--parts", "a=0.5", "b=0.5", "--group", "no.such"], "no single value 'no.such'"),
        (["--out", str(tmp_path / "p"), "--parts", "a=0.5", "b=0.5", "--group-key", "zzz"], "does not fit"),
        (["--out", str(tmp_path / "q"), "--parts", "a=0.5", "b=0.5", "--group-key", "("], "no regular expression"),
        (["--out", str(tmp_path / "r"), "--by-value", "split", "--group", "split"], "leave out --group"),
        (["--out", str(tmp_path / "s"), "--parts", "a=0.5", "b=0.5", "--shard-size", "-1"], "--shard-size -1: at least one sample"),
    ):
        with pytest.raises(UserError, match=text):
            data([*command, *more])


def test_shares():
    groups = [f"g{n}" for n in range(4000)]
    parts = assign(groups, {"a": 0.25, "b": 0.75}, 3)
    assert abs(parts.count("a") / 4000 - 0.25) < 0.03
    assert 0 <= place("x", 0) < 1 and place("x", 0) != place("x", 1)
    assert parse_parts(["a=0.9", "b=0.1"]) == {"a": 0.9, "b": 0.1}
    with pytest.raises(DataError, match="name of a folder"):
        assign(["a/b"], None, 0)
