"""``mmpretrain data dedup``: what looks alike goes, the largest stays, and nothing depends on chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.shards import encoded, write_tar
from PIL import Image

from mmpretrain.cli.data import run as data
from mmpretrain.cli.errors import UserError
from mmpretrain.data_tools.dedup import _FACTS, HASHES, dhash, duplicates, phash
from mmpretrain.data_tools.shards import read_samples


def photo(seed: int, size: int = 96) -> Image.Image:
    """A smooth random picture in colour."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)


def bits(a: int, b: int) -> int:
    return (a ^ b).bit_count()


@pytest.mark.parametrize("name", HASHES)
def test_hashes_survive_encoding_and_size(name):
    make = {"dhash": dhash, "phash": phash}[name]
    near = [bits(make(photo(n)), make(photo(n).resize((61, 61)))) for n in range(20)]
    far = [bits(make(photo(n)), make(photo(n + 1))) for n in range(20)]
    assert max(near) <= 6 and min(far) >= 14 and abs(np.mean(far) - 32) < 6


def facts(hashes: list[int], pixels: list[int] | None = None) -> np.ndarray:
    found = np.zeros(len(hashes), dtype=_FACTS)
    found["hash"], found["good"] = hashes, True
    found["pixels"] = pixels or 1
    return found


@pytest.mark.parametrize("distance", [0, 1, 4, 9])
def test_pairs_are_those_of_all_comparisons(distance):
    rng = np.random.default_rng(distance)
    hashes = []
    for centre in rng.integers(0, 2**63, 12).tolist():
        for _ in range(6):
            hashes.append(centre ^ sum(1 << int(b) for b in set(rng.integers(0, 64, rng.integers(0, distance + 4)).tolist())))
    found = duplicates(facts(hashes), distance, 255)
    gone = {one.sample for one in found}
    for number, value in enumerate(hashes):  # equal pixels and bytes: the first of a kind stays
        earlier = [other for other in range(number) if other not in gone and bits(value, hashes[other]) <= distance]
        assert (number in gone) == bool(earlier)
    assert all(bits(hashes[one.sample], hashes[one.of]) == one.distance and one.of not in gone for one in found)


def test_the_largest_stays_and_colours_count():
    found = duplicates(facts([5, 5, 5], [10, 30, 30]), 0, 10)
    assert [(one.sample, one.of) for one in found] == [(0, 1), (2, 1)]
    chain = duplicates(facts([1, 1, 0, 0], [9, 1, 20, 1]), 1, 10)  # copies of one that goes leave with it
    assert [(one.sample, one.of, one.distance) for one in chain] == [(0, 2, 1), (1, 2, 1), (3, 2, 0)]
    coloured = facts([5, 5])
    coloured["colours"][1] = 200
    assert duplicates(coloured, 0, 10) == []


def keys(folder: Path) -> list[str]:
    return [key for path in sorted(folder.glob("*.tar")) for key, _ in read_samples(path)]


def test_command(tmp_path, capsys, own_cache):
    members = [(f"p{n}.jpg", encoded(photo(n), "JPEG", quality=92)) for n in range(6)]
    members += [(f"p{n}-copy.png", encoded(photo(n).resize((140, 140)))) for n in (1, 4)] + [("text.txt", b"no picture")]
    write_tar(tmp_path / "in" / "0.tar", members[:5])
    write_tar(tmp_path / "in" / "1.tar", members[5:])
    command = ["data", "dedup", str(tmp_path / "in"), "--workers", "1", "--quiet"]
    assert data([*command, "--out", str(tmp_path / "out")]) == 0
    assert keys(tmp_path / "out") == ["p0", "p2", "p3", "p5", "p1-copy", "p4-copy", "text"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "dedup_report.jsonl").read_text().splitlines()]
    assert [(row["key"], row["of"]["key"], row["of"]["shard"]) for row in rows] == [("p1", "p1-copy", "1.tar"), ("p4", "p4-copy", "1.tar")]
    assert data([*command, "--list", str(tmp_path / "in" / "quarantine.jsonl")]) == 0
    listed = [json.loads(line) for line in (tmp_path / "in" / "quarantine.jsonl").read_text().splitlines()]
    assert listed == [{**row, "tool": "dedup"} for row in rows]
    assert "near duplicates" in capsys.readouterr().out and not list((own_cache / "state").iterdir())
    write_tar(tmp_path / "other" / "0.tar", [("p3.jpg", members[0][1])])  # a line for it would leave out p3 of the first folder
    with pytest.raises(UserError, match=r"several shards are called 0\.tar"):
        data([*command[:3], str(tmp_path / "other"), *command[3:], "--list", str(tmp_path / "in" / "quarantine.jsonl")])
    with pytest.raises(UserError, match="0 to 16 bits"):
        data([*command, "--list", "x", "--distance", "40"])
