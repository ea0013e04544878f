"""``regions.json``: what is written is read back, other files are refused, and sets that are rewritten keep it or refuse to mix."""

from __future__ import annotations

import json

import pytest
from helpers.shards import write_shards

from mmpretrain.data.errors import DataError
from mmpretrain.data.regions_info import NAME, Group, RegionsInfo, read_info, same_extractor, write_info
from mmpretrain.data_tools.rewrite import rewrite

INFO = RegionsInfo(
    "extractor",
    "a" * 64,
    16,
    "extractor x",
    "auto",
    ("cat", "dog"),
    0,
    ("red", "big"),
    (Group("colour", 0, 1),),
    True,
    {"n": 1},
    {"m": [2]},
)


def test_round_trip(tmp_path):
    assert read_info(tmp_path) is None
    for info in (INFO, RegionsInfo("grid", "b", 4, "resnet")):
        write_info(tmp_path, info)
        assert read_info(tmp_path) == info


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"version": 1}',
        '{"version": 2}',
        json.dumps({**INFO.to_json(), "width": 0}),
        json.dumps({**INFO.to_json(), "groups": [1]}),
    ],
)
def test_other_files_are_refused(text, tmp_path):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(DataError, match=NAME):
        read_info(tmp_path)


def test_one_extractor_for_all_folders(tmp_path):
    for name, mark in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        write_info(tmp_path / name, INFO._replace(fingerprint=mark * 64, options={"n": name}))
    (tmp_path / "texts").mkdir()
    assert same_extractor([tmp_path / "texts", tmp_path / "a", tmp_path / "b"]).fingerprint == "1" * 64
    assert same_extractor([tmp_path / "texts"]) is None
    with pytest.raises(DataError, match=r"/a were made by extractor x \(111111111111\) and those of .*/c .* cannot be mixed"):
        same_extractor([tmp_path / "a", tmp_path / "c"])


def test_rewritten_shards_keep_it(tmp_path):
    inputs = [write_shards(tmp_path / name, (2,)) / "00000.tar" for name in ("a", "b")]
    rows = {"": [[0, 0], [1, 1, {"key": "other"}]]}
    for folder, mark in (("a", "1"), ("b", "1")):
        write_info(tmp_path / folder, INFO._replace(fingerprint=mark * 64))
    rewrite(tmp_path / "out", rows, inputs, {"tool": "test"}, 10, {"workers": 1, "progress": False})
    assert read_info(tmp_path / "out").fingerprint == "1" * 64
    write_info(tmp_path / "b", INFO._replace(fingerprint="2" * 64))
    with pytest.raises(DataError, match="cannot be mixed"):
        rewrite(tmp_path / "no", rows, inputs, {"tool": "test"}, 10, {"workers": 1, "progress": False})
    assert not (tmp_path / "no").exists()
