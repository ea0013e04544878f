"""What a build reads and keeps before it writes: long JSON, names, the list of records; and lists beside captions after it."""

from __future__ import annotations

import json

import pytest
from helpers.building import put

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools import build_spool, rewrite
from mmpretrain.data_tools.build_records import Record, Skip, clean_key
from mmpretrain.data_tools.formats import common


@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("value", [[], {}, [1, 'a]\\"', {"b": [2.5, None]}], {"x": [1], 'y"': {"z": "}"}}, [12345, -1e9]])
def test_long_json_is_read_piece_by_piece(tmp_path, monkeypatch, chunk, value):
    monkeypatch.setattr(common, "_CHUNK", chunk)
    pairs = list(value.items()) if isinstance(value, dict) else [(str(n), one) for n, one in enumerate(value)]
    for indent in (None, 2):
        path = tmp_path / "x.json"
        path.write_text(json.dumps(value, indent=indent))
        assert list(common.stream(path)) == pairs
        path.write_text(json.dumps(value, indent=indent)[:-1])
        with pytest.raises(DataError, match="cut short"):
            list(common.stream(path))


def test_names_lead_to_no_file_outside(tmp_path):
    put(tmp_path, {"secret.jpg": 1, "img/a.jpg": 2})
    pictures = common.Pictures([tmp_path / "img"])
    assert pictures.find("a.jpg") and pictures.find("a", extensions=True)
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg"), "x/../../secret.jpg", "", ".."):
        assert pictures.find(name) is None


def test_keys_have_no_dots():
    assert clean_key("a.b/../c d.é") == "a_b/_/c_d_é" and clean_key("/x//y") == "x/y" and clean_key("..") == "_"


def test_the_list_of_records_is_not_read_half_written(tmp_path):
    records = [Record("a", ("p",), ("c",), {"n": 1}), Skip("b", "why"), Record("c", meta={"x": float("nan")}), Record("d", ([("q")],))]
    head = build_spool.fill(tmp_path, {"of": "this"}, records)
    assert (
        head["records"] == 2 and build_spool.kept(tmp_path, {"of": "this"}) == head and build_spool.kept(tmp_path, {"of": "that"}) is None
    )
    assert [record.key for record in build_spool.read(tmp_path, 0, 9)] == ["a", "d"]
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert reasons == ["why", "annotations are not JSON"]
    (tmp_path / "head.json").write_text("{")
    assert build_spool.kept(tmp_path, {"of": "this"}) is None


def test_ids_of_captions_stay_with_them():
    meta = {"captions": ["a", "b", "c"], "caption_ids": [1, 2, 3], "caption_boxes": [[1], [2], [3]], "objects": [1, 2, 3]}
    _, members = rewrite.edited("k", {"txt": b"a", "json": json.dumps(meta).encode()}, {"keep": [2, 0]})
    found = json.loads(members["json"])
    assert found["captions"] == ["c", "a"] and found["caption_ids"] == [3, 1] and found["caption_boxes"] == [[3], [1]]
    assert found["objects"] == [1, 2, 3] and members["txt"] == b"c"
