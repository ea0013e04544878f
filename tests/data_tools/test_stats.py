"""``mmpretrain data stats`` and the histograms under it."""

from __future__ import annotations

import json
import random
import re

import pytest
from helpers.shards import picture, sample, write_tar

from mmpretrain.cli.data import run as data
from mmpretrain.cli.errors import UserError
from mmpretrain.data_tools import histogram
from mmpretrain.data_tools.stats import count

LOCAL = {"workers": 1, "progress": False}


def test_histograms_add_up_and_answer_to_one_in_two_hundred():
    rng = random.Random(0)
    values = [rng.lognormvariate(5, 1.5) for _ in range(3000)]
    parts: list[dict[str, int]] = [{}, {}]
    for place, value in enumerate(values):
        histogram.add(parts[place % 2], value)
    whole = histogram.merged(parts)
    assert histogram.total(whole) == 3000 and histogram.merged(reversed(parts)) == whole
    for share in (0.1, 0.5, 0.95):
        assert histogram.quantile(whole, share) == pytest.approx(sorted(values)[int(share * 3000) - 1], rel=0.02)
    assert histogram.mean(whole) == pytest.approx(sum(values) / 3000, rel=0.005)
    for counts in (whole, {"0": 4, "3": 5}, {"7": 1}, {"-2.5": 3, "1000": 2}):
        drawn = histogram.bars(counts)
        assert sum(n for *_, n in drawn) == histogram.total(counts) and len(drawn) <= 40
    assert [n for *_, n in histogram.bars({"0": 4, "3": 5})] == [4, 0, 0, 5]
    assert histogram.bars({}) == [] and histogram.quantile({}, 0.5) == 0 and histogram.rounded(123456) == 123000


def test_counts_of_a_set(tmp_path, own_cache):
    paths = [
        write_tar(tmp_path / f"{n}.tar", [*sample(2 * n, captions=n + 1), *sample(2 * n + 1), (f"b{n}.txt", b"\xff")]) for n in range(2)
    ]
    found = count(paths, 3, engine=LOCAL)
    assert (found.samples, found.unreadable, found.shards, len(found.chosen)) == (6, 2, 2, 3)
    assert found.counts["captions"] == {"1": 1, "2": 3} and found.counts["width"] == {"24": 4} and found.counts["aspect"] == {"1.2": 4}
    assert found.tables["format"] == {"png": 4} and found.tables["word"]["number"] == 7
    assert count(paths[::-1], 3, engine=LOCAL).counts == found.counts
    assert {(path.name, n) for path, n in count(paths[::-1], 3, engine=LOCAL).chosen} == {(path.name, n) for path, n in found.chosen}


def test_page_is_one_file_that_runs_nothing(tmp_path, capsys, own_cache):
    evil = "<script>alert(1)</script> & co"
    members = [*sample(0), ("x.png", picture(3)), ("x.json", json.dumps({"captions": [evil, evil]}).encode()), ("y.txt", b"text alone")]
    write_tar(tmp_path / "set" / "0.tar", [*members, ("z.png", picture(1)[:50]), ("z.txt", b"broken")])
    assert data(["data", "stats", str(tmp_path / "set"), "--out", str(tmp_path / "s.html"), "--workers", "1", "--quiet"]) == 0
    shown = capsys.readouterr().out
    text = (tmp_path / "s.html").read_text()
    assert "words of a caption" in shown and "<script" not in text and "&lt;script&gt;alert(1)" in text
    assert "default-src 'none'" in text and text.count("data:image/jpeg;base64,") == 2 and "cannot be decoded" in text
    assert set(re.findall(r"""(?:src|href)=["']?(\w+)""", text)) == {"data"} and text.count("<svg") >= 6
    before = text
    assert data(["data", "stats", str(tmp_path / "set"), "--out", str(tmp_path / "s.html"), "--workers", "1", "--quiet"]) == 0
    assert (tmp_path / "s.html").read_text() == before
    with pytest.raises(UserError, match="--show -1"):
        data(["data", "stats", str(tmp_path / "set"), "--show", "-1"])
