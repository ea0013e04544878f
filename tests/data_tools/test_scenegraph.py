"""``mmpretrain data scenegraph``: spans of captions, by annotations and by rules; the rules against what generated captions claim."""

from __future__ import annotations

import json

import pytest
from helpers.shards import picture, write_tar

from mmpretrain.cli.data import run as data
from mmpretrain.cli.errors import UserError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.scenegraph_parse import parse
from mmpretrain.data_tools.scenegraph import from_annotations
from mmpretrain.data_tools.scenes_captions import captions
from mmpretrain.data_tools.scenes_logic import Relation
from mmpretrain.data_tools.scenes_samples import VERSION
from mmpretrain.data_tools.scenes_world import Rng, sample_world

WORDS = {"left of": "left", "right of": "right", "above": "above|higher", "below": "below|under|lower"}


def said(text: str, graph: dict) -> tuple[list[str], list[tuple[str, str]], list[tuple[str, str, str]]]:
    """(objects, (attribute, object), (subject, relation, object)) in words."""
    objects = [text[start:end].lower() for start, end in graph["objects"]]
    attributes = [(text[start:end].lower(), objects[number]) for start, end, number in graph["attributes"]]
    relations = [(objects[a], text[start:end].lower(), objects[b]) for start, end, a, b in graph["relations"]]
    return objects, attributes, relations


@pytest.mark.parametrize(
    ("text", "objects", "attributes", "relations"),
    [
        ("A man riding a brown horse.", ["man", "horse"], [("brown", "horse")], [("man", "riding", "horse")]),
        ("a young woman is sitting on a wooden bench", ["woman", "bench"], [("young", "woman"), ("wooden", "bench")],
         [("woman", "sitting on", "bench")]),
        ("A picture of two cats next to a tennis racket", ["cats", "tennis racket"], [], [("cats", "next to", "tennis racket")]),
        ("above the red circle there is a blue square", ["circle", "square"], [("red", "circle"), ("blue", "square")],
         [("square", "above", "circle")]),
        ("a circle that is red and striped", ["circle"], [("red", "circle"), ("striped", "circle")], []),
        ("a star is above and to the left of a heart", ["star", "heart"], [],
         [("star", "above", "heart"), ("star", "to the left of", "heart")]),
        ("", [], [], []),
    ],
)  # fmt: skip
def test_rules(text, objects, attributes, relations):
    assert said(text, parse(text)) == (objects, attributes, relations)


def _shares(found: list, gold: list) -> tuple[int, int, int]:
    left = list(gold)
    for one in found:
        if one in left:
            left.remove(one)
    return len(gold) - len(left), len(found), len(gold)


def test_rules_on_generated_captions():
    """Against the claims behind the captions: things with colours and shapes, and the relations between them."""
    sums = {"attributes": [0, 0, 0], "relations": [0, 0, 0]}
    for number in range(150):
        world = sample_world(Rng(VERSION, 0, "val", number, "world"), "val")
        for caption in captions(world, Rng(VERSION, 0, "val", number, "captions")):
            text = caption.text()
            _, attributes, relations = said(text, parse(text))
            claims = [part for part in caption.parts if isinstance(part, Relation)]
            gold = [(a.shape, name, b.shape) for claim in claims for name in claim.relations for a, b in [claim.nouns]]
            named = [(a, next((n for n, w in WORDS.items() if any(x in words for x in w.split("|"))), ""), b) for a, words, b in relations]
            found = [one for one in named if one[1] and one[0] and one[2]]
            sums["relations"] = [x + y for x, y in zip(sums["relations"], _shares(found, gold), strict=True)]
            if len(claims) == len(caption.parts):
                gold = [(n.colour, n.shape) for claim in claims for n in claim.nouns if n.colour]
                found = [one for one in attributes if one[0] in ("red", "yellow", "green", "blue", "purple", "pink", "cyan", "black")]
                sums["attributes"] = [x + y for x, y in zip(sums["attributes"], _shares(found, gold), strict=True)]
    for name, (right, found_number, gold_number) in sums.items():
        print(f"{name}: precision {right / found_number:.3f} of {found_number}, recall {right / gold_number:.3f} of {gold_number}")
        assert right / found_number > 0.95 and right / gold_number > 0.95


VG = {
    "objects": [{"name": "man", "attributes": ["tall"]}, {"name": "horse", "names": ["horse", "animal"]}, {"name": "sky"}],
    "triples": [[0, "riding", 1], [1, "under", 2]],
}


def test_annotations():
    text = "A tall man riding two horses"
    assert said(text, from_annotations(text, VG["objects"], VG["triples"])) == (
        ["man", "horses"], [("tall", "man")], [("man", "riding", "horses")],
    )  # fmt: skip
    assert from_annotations("a manhole", VG["objects"], VG["triples"]) == {"objects": [], "attributes": [], "relations": []}


def test_command(tmp_path, capsys, own_cache):
    texts = ["A tall man riding a horse", "the sky"]
    members = [("a.png", picture(0)), ("a.json", json.dumps({"captions": texts, **VG}).encode())]
    members += [("b.png", picture(1)), ("b.txt", b"a red ball on a table"), ("c.png", picture(2)), ("c.txt", b"\xff")]
    write_tar(tmp_path / "in" / "0.tar", members)
    command = ["data", "scenegraph", str(tmp_path / "in"), "--workers", "1", "--quiet"]
    assert data([*command, "--out", str(tmp_path / "out")]) == 0
    reader = ShardReader(sorted((tmp_path / "out").glob("*.tar")))
    first, second = reader.read(0), reader.read(1)
    assert [said(text, graph)[2] for text, graph in zip(first.captions, first.meta["scene_graph"], strict=True)] == [
        [("man", "riding", "horse")],
        [],
    ]
    assert said(second.captions[0], second.meta["scene_graph"][0])[2] == [("ball", "on", "table")]
    assert "relations" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"0.tar key 'b'.*take --from parser"):
        data([*command, "--out", str(tmp_path / "x"), "--from", "annotations"])


def test_annotations_of_another_form(tmp_path, own_cache):
    odd = {"objects": [{"name": None}, {"name": 7}, {"names": ["horse", None]}], "triples": []}  # no names are none
    assert from_annotations("a horse", odd["objects"], ()) == {"objects": [[2, 7]], "attributes": [], "relations": []}
    made = {**odd, "captions": ["a horse"], "triples": [[0, "on"]]}
    write_tar(tmp_path / "in" / "0.tar", [("a.png", picture(0)), ("a.json", json.dumps(made).encode())])
    with pytest.raises(UserError, match=r"0\.tar key 'a': objects or triples .* are not of the form .*take --from parser"):
        data(["data", "scenegraph", str(tmp_path / "in"), "--workers", "1", "--quiet", "--out", str(tmp_path / "out")])
