"""What captions of scenes claim, against the scenes themselves."""

from __future__ import annotations

from collections import Counter

import pytest

from mmpretrain.data_tools import scenes_samples
from mmpretrain.evaluate.claims import Beside, Claims, Placed, Words, agrees, claims, holds, prompt_of, shown, things_of
from mmpretrain.evaluate.suite import object_names
from mmpretrain.types import Sample

WORDS = Words(
    ("black", "blue", "cyan", "green", "pink", "purple", "red", "yellow"), ("circle", "cross", "heart", "square", "star", "triangle")
)
RED, BLUE = ("red", "circle"), ("blue", "square")


def scenes(n: int) -> list[Sample]:
    """The first scenes of ``scenes:val``, without their pictures."""
    import json

    found = []
    for i in range(n):
        members = dict(scenes_samples.members(0, "val", i))
        meta = json.loads(next(data for name, data in members.items() if name.endswith(".json")))
        found.append(Sample(str(i), tuple(meta["captions"]), (), meta=meta))
    return found


@pytest.fixture(scope="module")
def some() -> list[Sample]:
    return scenes(100)


@pytest.mark.parametrize(
    ("caption", "things", "beside"),
    [
        ("a red circle left of a blue square", {RED: 1, BLUE: 1}, [Beside(RED, "left", BLUE)]),
        ("To the right of a large blue square there is a small red circle.", {RED: 1, BLUE: 1}, [Beside(RED, "right", BLUE)]),
        ("The picture shows three striped red circles and a blue square", {RED: 3, BLUE: 1}, []),
        ("two circles that are dotted and red, and there is also a blue square", {RED: 2, BLUE: 1}, []),
        (
            "Right of a red circle there is a blue square, and right of a red star there is a pink star.",
            {RED: 1, BLUE: 1, ("red", "star"): 1, ("pink", "star"): 1},
            [Beside(BLUE, "right", RED), Beside(("pink", "star"), "right", ("red", "star"))],
        ),
        ("a red circle above a blue square", {RED: 1, BLUE: 1}, []),
        ("a circle and two red things", {}, []),
        ("two crosses", {}, []),
        ("a plain red circle left of a dotted red circle", {RED: 2}, []),  # two of a kind: a picture cannot tell which is meant
    ],
)
def test_captions(caption, things, beside):
    found = claims(caption, WORDS)
    assert found.things == Counter(things) and list(found.beside) == beside


def test_scenes_bear_out_their_captions(some):
    told = 0
    for sample in some:
        things = things_of(sample.meta)
        for caption in sample.captions:
            found = claims(caption, WORDS)
            assert agrees(found, things), caption
            told += len(found.beside)
    assert told > 20


def test_every_scene_has_a_caption_that_names_all(some):
    prompts = [prompt_of(i, sample, WORDS) for i, sample in enumerate(some)]
    assert all(prompt is not None for prompt in prompts)
    for prompt, sample in zip(prompts, some, strict=True):
        assert prompt.claims.things == Counter(placed.thing for placed in things_of(sample.meta)) and prompt.text in sample.captions
    with_relation = [i for i, sample in enumerate(some) if any(claims(c, WORDS).beside for c in sample.captions)]
    preferred = sum(bool(prompts[i].claims.beside) for i in with_relation)
    assert preferred > 0.7 * len(with_relation) > 10  # the others do not name everything
    assert prompt_of(0, some[0], WORDS, fits=lambda caption: False) is None


def test_edits_of_a_relation_are_false(some):
    """Of minimal edits that exchange left and right, none is borne out."""
    tried = 0
    for sample in some:
        for caption, edits in zip(sample.captions, sample.meta["edits"], strict=True):
            before = claims(caption, WORDS)
            for edit in edits:
                after = claims(edit["text"], WORDS)
                if edit["kind"] == "relation" and after.beside and before.beside and after.things == before.things:
                    tried += 1
                    assert not agrees(after, things_of(sample.meta)), edit["text"]
    assert tried > 2


def test_relations_are_of_centres():
    things = [Placed(RED, 0.2, 0.5), Placed(BLUE, 0.6, 0.5), Placed(RED, 0.9, 0.1)]
    assert holds(Beside(RED, "left", BLUE), things) and holds(Beside(RED, "right", BLUE), things)
    assert not holds(Beside(BLUE, "left", BLUE), things) and not holds(Beside(BLUE, "right", ("red", "star")), things)
    assert shown(Beside(RED, "left", RED), things) and not shown(Beside(BLUE, "left", BLUE), things)


def test_annotations_in_parts_are_none():
    whole = {"width": 10, "height": 20, "objects": [{"colour": "red", "shape": "circle", "box": [0, 0, 5, 5]}]}
    assert things_of(whole) == [Placed(RED, 0.25, 0.125)]
    for lack in ("colour", "shape", "box"):
        assert things_of({**whole, "objects": [{k: v for k, v in whole["objects"][0].items() if k != lack}]}) is None
    assert things_of({"objects": whole["objects"]}) is None and things_of({}) is None
    for other in ({"width": "10"}, {"objects": [{**whole["objects"][0], "box": [0, 0, 5, None]}]}, {"objects": 5}):
        assert things_of({**whole, **other}) is None and object_names(Sample("k", (), (), meta={**whole, **other})) <= {"red circle"}
    assert Claims.none().things == Counter()
