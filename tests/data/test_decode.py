"""Text, JSON and the assembly of samples by their rules. Pictures: ``test_codec.py``; bombs and code in shards: ``test_safety.py``."""

from __future__ import annotations

import json

import pytest
from helpers.pictures import flat

from mmpretrain.data.bad import reason_of
from mmpretrain.data.decode import assemble, decode_json, decode_text, join
from mmpretrain.data.errors import BadSample
from mmpretrain.evaluate.matching import edit_pairs


@pytest.mark.fault(19)
def test_text_rules():
    assert decode_text("\ufeff مرحبا é \n".encode()) == "مرحبا é"
    for data, message in [(b"\xff", "not UTF-8"), (b"a\0b", "NUL"), (b"x" * 65537, "longer than 65536")]:
        with pytest.raises(BadSample, match=message):
            decode_text(data)


def test_json_rules():
    assert decode_json(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    for data, message in [(b"[1]", "not an object"), (b'{"a": NaN}', "NaN is not JSON"), (b"{", "cannot be read")]:
        with pytest.raises(BadSample, match=message):
            decode_json(data)


@pytest.mark.parametrize("data", [b'{"captions": ["x"], "captions": ["y"]}', b'{"a": [{"captions": 1, "b": 2, "\\u0063aptions": 1}]}'])
def test_a_repeated_key_loses_nothing_in_silence(data):
    with pytest.raises(BadSample, match=r"^JSON has a key twice \('captions'\)$") as caught:
        decode_json(data)
    assert reason_of(caught.value, "") == "JSON has a key twice"


def meta(**fields) -> bytes:
    return json.dumps(fields).encode()


def test_a_statement_is_never_a_caption():
    assert assemble("k", {"txt": b"a cat"}).captions == ("a cat",)
    assert assemble("k", {"txt": b"a cat", "json": meta(captions=["x", "y"])}).captions == ("x", "y")
    false = assemble("k", {"txt": b"a cat", "json": meta(statement="a cat", label=False)})
    assert false.captions == () and false.statements == (("a cat", False),)
    both = assemble("k", {"json": meta(captions=["x"], statements=[{"text": "s", "label": True}], objects=[1])})
    assert both.captions == ("x",) and both.statements == (("s", True),) and both.meta == {"objects": [1]}
    assert assemble("k", {"txt": b"s", "json": meta(statements=[{"text": "s", "label": False}])}).captions == ()
    for bad in ({"statement": "s"}, {"statement": "s", "label": "maybe"}, {"captions": [1]}, {"captions": {"a": "b"}}, {"statements": 1}):
        with pytest.raises(BadSample):
            assemble("k", {"json": meta(**bad)})


def test_several_pictures_come_in_order_and_side_by_side():
    found = assemble("k", {"img10.png": b"c", "img0.png": b"a", "img1.jpg": b"b", "txt": b"t"})
    assert found.images == (b"a", b"b", b"c")
    joined = join([flat("RGB", (1, 1, 1), (4, 2)), flat("RGB", (2, 2, 2), (3, 5))])
    assert joined.size == (7, 5) and joined.getpixel((3, 4)) == (255, 255, 255) and joined.getpixel((4, 4)) == (2, 2, 2)
    with pytest.raises(BadSample, match="two pictures"):
        assemble("k", {"png": b"a", "jpg": b"b"})


@pytest.mark.parametrize(
    "found", ["abc", 5, {"a": 1}, ["x"], [["x"]], [None], [[{"text": "b"}]], [[{"kind": "k", "text": 3}]], [{"text": "b"}]]
)
def test_edits_of_another_form_are_none(found):
    sample = assemble("k", {"json": meta(captions=["a"], edits=found)})
    assert not any(sample.meta["edits"]) and edit_pairs([sample]).kind == []


def test_edits_are_kept_as_they_are():
    found = [[{"text": "b", "kind": "word", "more": 1}, {"text": "c", "kind": "swap"}], []]
    assert assemble("k", {"json": meta(captions=["a", "d"], edits=found)}).meta["edits"] == found
