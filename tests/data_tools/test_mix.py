"""``mmpretrain data mix``: weights to within one sample, no repeats unless asked."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.shards import sample, write_tar

from mmpretrain.cli.data import run as data
from mmpretrain.cli.errors import UserError
from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.mix import interleave, mix, plan
from mmpretrain.data_tools.shards import read_samples

LOCAL = {"workers": 1, "progress": False}


def keys(folder: Path) -> list[str]:
    return [key for path in sorted(folder.glob("*.tar")) for key, _ in read_samples(path)]


def test_shares_hold_at_every_place():
    weights = [0.5, 0.3, 0.2]
    places = interleave(weights, 500)
    for source, weight in enumerate(weights):
        assert np.abs(np.cumsum(places == source) - weight * np.arange(1, 501)).max() <= 1


def test_no_sample_repeats_unless_asked():
    rows = plan([5, 100], [1, 1], None, 0, repeat=False)
    assert len(rows) == 10 and len(set(rows)) == 10
    with pytest.raises(DataError, match="source 1 has 5 samples, 10 are asked for"):
        plan([5, 100], [1, 1], 20, 0, repeat=False)
    again = plan([5, 100], [1, 1], 20, 0, repeat=True)
    assert Counter(before for source, _, before in again if source == 0) == {0: 5, 1: 5}
    assert sorted(place for source, place, before in again if (source, before) == (0, 1)) == [0, 1, 2, 3, 4]
    assert len(plan([5, 7], None, None, 0, repeat=False)) == 12


def test_mixture_of_shards(tmp_path, capsys):
    a = [write_tar(tmp_path / "a" / f"{s}.tar", [m for n in range(3 * s, 3 * s + 3) for m in sample(n)]) for s in range(2)]
    b = [write_tar(tmp_path / "b" / "0.tar", [m for n in range(20) for m in sample(n)])]
    counts = mix({"a": a, "b": b}, tmp_path / "out", [1, 2], n=12, shard_size=5, engine=LOCAL)
    assert counts == {"a": 4, "b": 8}
    found = keys(tmp_path / "out")
    assert len(set(found)) == 12 and Counter(key.split("/")[0] for key in found) == counts
    assert [len(list(read_samples(path))) for path in sorted((tmp_path / "out").glob("*.tar"))] == [5, 5, 2]
    assert found != sorted(found)  # each source in a random order
    mix({"a": a, "b": b}, tmp_path / "again", [1, 2], n=12, shard_size=5, engine=LOCAL)
    for name in ("00000.tar", "00002.tar"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    command = ["data", "mix", str(tmp_path / "a"), f"big={tmp_path / 'b'}", "--weights", "1", "1", "--n", "20", "--quiet", "--workers", "1"]
    with pytest.raises(UserError, match="give a smaller --n"):
        data([*command, "--out", str(tmp_path / "c")])
    assert data([*command, "--out", str(tmp_path / "d"), "--repeat"]) == 0
    assert sum(key.endswith("~2") for key in keys(tmp_path / "d")) == 4
    assert json.loads((tmp_path / "d" / "manifest.json").read_text())["made"]["sources"] == ["a", "big"]
    assert "big" in capsys.readouterr().out
    with pytest.raises(UserError, match="two sources are called 'a'"):
        data(["data", "mix", str(tmp_path / "a"), str(tmp_path / "a" / "0.tar"), "--out", str(tmp_path / "e")])


@pytest.mark.parametrize("weight", ["nan", "inf", "0", "-1"])
def test_weights_that_are_no_weights_are_refused_before_indexing(tmp_path, weight):
    for name in ("a", "b"):
        write_tar(tmp_path / name / "0.tar", sample(0))
    command = ["data", "mix", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out"), "--weights", weight, "1"]
    with pytest.raises(UserError, match="--weights: one positive number for each of the 2 sources"):
        data(command)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["0.tar", "0.tar"]
