"""Everything that is said is checked: captions are true, edits and false statements are false, and text alone betrays nothing."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from mmpretrain.data_tools.scenes_captions import CAPTIONS, captions
from mmpretrain.data_tools.scenes_edits import KINDS, PERMUTATIONS, edits
from mmpretrain.data_tools.scenes_language import finish, noun_text, sample_style, say, words
from mmpretrain.data_tools.scenes_logic import (
    At,
    Bigger,
    Both,
    Every,
    More,
    Noun,
    Number,
    Of,
    Relation,
    There,
    holds,
    nouns_of,
    related,
)
from mmpretrain.data_tools.scenes_statements import (
    PAIR_PROPOSERS,
    PROPOSERS,
    pair_statements,
    questions,
    sample_pair,
    statements,
)
from mmpretrain.data_tools.scenes_world import HELD_OUT, Rng, Thing, World, sample_world

SCENES = 1200


def thing(shape, colour, x, y, size="small", material="plain"):
    return Thing(shape, colour, size, material, x, y, 100, 0)


WORLD = World(
    (
        thing("circle", "red", 200, 200, "large", "striped"),
        thing("circle", "red", 800, 250),
        thing("star", "blue", 500, 800, material="hollow"),
    ),
    (240, 240, 240),
    (),
)
RED, CIRCLE, STAR, BLUE = Noun(colour="red"), Noun(shape="circle"), Noun(shape="star"), Noun(colour="blue")


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        (There((CIRCLE,), (None,)), True),
        (There((CIRCLE,), (1,)), False),
        (There((CIRCLE, STAR), (2, None)), True),
        (There((RED, CIRCLE), (None, None)), True),  # two things, one for each noun
        (There((RED, CIRCLE, CIRCLE), (None, None, None)), False),  # not three
        (There((BLUE, STAR), (None, None)), False),  # one thing is not two
        (Relation((STAR, CIRCLE), ("below",)), True),
        (Relation((CIRCLE, STAR), ("below",)), False),
        (Relation((CIRCLE, STAR), ("left of",)), True),  # one of them is
        (Relation((Noun("circle", size="large"), Noun("circle", size="small")), ("above",)), None),  # almost level
        (Relation((Noun("circle", size="large"), STAR), ("above", "left of")), True),
        (At((STAR,), "bottom"), True),
        (At((STAR,), "bottom left"), None),
        (At((CIRCLE,), "bottom"), False),
        (Number((Noun(),), "exactly", 3), True),
        (Number((STAR,), "at least", 2), False),
        (Number((STAR,), "at most", 1), True),
        (Of((RED,), 2, 3), True),
        (Of((RED,), 2, 4), False),
        (More((CIRCLE, STAR)), True),
        (More((CIRCLE, RED), same=True), True),
        (More((Noun("heart"), Noun("cross")), same=True), False),
        (Every((CIRCLE, RED)), True),
        (Every((CIRCLE, Noun(material="plain"))), False),
        (Every((Noun("heart"), RED)), None),
        (Bigger((Noun("circle", size="large"), STAR)), True),
        (Bigger((CIRCLE, STAR)), None),  # which circle?
        (Both((There((STAR,), (1,)), More((CIRCLE, STAR)))), True),
    ],
)
def test_evaluator(claim, expected):
    assert holds(claim, WORLD) is expected


def test_related_is_antisymmetric_and_unsure_when_level():
    a, b = WORLD.things[0], WORLD.things[1]
    assert related(a, "left of", b) is True and related(b, "left of", a) is False
    assert related(a, "above", b) is None and related(b, "above", a) is None


def test_phrases():
    style = sample_style(Rng(0))._replace(form=1, size_words=1, relation_words=0, clause=False, definite=False, sentence=True)
    claim = There((Noun("cross", "red", "small", "striped"), STAR), (2, None))
    assert finish(say(claim, style), style) == "There are two little striped red crosses and a star."
    assert noun_text(Noun("star", "blue"), style._replace(clause=True), plural=True) == "stars that are blue"
    assert say(Relation((CIRCLE, STAR), ("left of",)), style._replace(form=3)) == "to the left of a star there is a circle"


@pytest.fixture(scope="module", params=["train", "compositional"])
def told(request):
    """[(world, caption, its edits)] of many scenes."""
    found = []
    for i in range(SCENES if request.param == "train" else 300):
        world = sample_world(Rng("told", request.param, i), request.param)
        rng = Rng("told", i, "text")
        found.append((world, [(caption, list(edits(caption, world, rng))) for caption in captions(world, rng)]))
    return request.param, found


def test_captions_are_true_and_edits_false(told):
    _, scenes = told
    kinds = Counter()
    for world, said in scenes:
        for caption, changed in said:
            assert holds(Both(caption.parts), world) is True, caption.text()
            assert len({caption.text(), *(edit.caption.text() for edit in changed)}) == 1 + len(changed)
            for edit in changed:
                assert holds(Both(edit.caption.parts), world) is False, (edit.kind, caption.text(), edit.caption.text())
                kinds[edit.kind] += 1
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 0.1 * len(scenes), kinds


def test_captions_are_many_and_varied(told):
    _, scenes = told
    texts = [caption.text() for _, said in scenes for caption, _ in said]
    lengths = sorted(len(words(text)) for text in texts)
    assert all(len(said) >= 3 for _, said in scenes)
    assert sum(len(said) for _, said in scenes) > 0.97 * CAPTIONS * len(scenes)
    assert lengths[len(lengths) // 20] <= 7 and lengths[-len(lengths) // 20] >= 25 and lengths[-1] < 60
    assert 60 < len({word for text in texts for word in words(text)}) < 150


def test_a_bag_of_words_cannot_tell_swaps_and_relations(told):
    """Whatever a classifier of (bag of words, picture) answers, it answers the same to a caption and to these edits: exactly chance."""
    seen = Counter()
    for _, said in told[1]:
        for caption, changed in said:
            for edit in changed:
                if edit.kind in PERMUTATIONS:
                    assert Counter(words(edit.caption.text())) == Counter(words(caption.text()))
                    assert words(edit.caption.text()) != words(caption.text())
                    seen[edit.kind] += 1
    assert set(seen) == set(PERMUTATIONS)


def test_held_out_pairs_are_never_spoken_of_in_training(told):
    split, scenes = told
    spoken = 0
    for _, said in scenes:
        for caption, changed in said:
            for claim in (Both(c.parts) for c in (caption, *(edit.caption for edit in changed))):
                spoken += any((noun.colour, noun.shape) in HELD_OUT for noun in nouns_of(claim))
    assert (spoken > 0) == (split == "compositional")


def text_only(train: list[tuple[str, bool]], test: list[tuple[str, bool]]) -> float:
    """Accuracy of naive Bayes on words and pairs of words."""

    def features(text: str) -> set[str]:
        said = ["<", *words(text), ">"]
        return {*said, *map(" ".join, pairwise(said)), f"#{len(said)}"}

    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    totals = Counter(label for _, label in train)
    for text, label in train:
        counts[label].update(features(text))

    def odds(text: str) -> float:
        both = [(counts[True][f] + 1, counts[False][f] + 1) for f in features(text)]
        return sum(math.log(a / (totals[True] + 2)) - math.log(b / (totals[False] + 2)) for a, b in both)

    return sum((odds(text) > 0) == label for text, label in test) / len(test)


def test_labels_cannot_be_guessed_from_the_text():
    single, double, asked = [], [], []
    by_kind: dict[str, Counter[bool]] = defaultdict(Counter)
    for i in range(SCENES):
        world = sample_world(Rng("labels", i), "train")
        for told in statements(world, Rng("labels", i, "s")):
            single.append((told["text"], told["label"]))
            by_kind[told["type"]][told["label"]] += 1
        asked += [(q["question"], q["answer"] == "yes") for q in questions(world, Rng("q", i)) if q["answer"] in ("yes", "no")]
        for told in pair_statements(sample_pair(Rng("pair", i), "pairs"), Rng("pair", i, "s")):
            double.append((told["text"], told["label"]))
            by_kind["two: " + told["type"]][told["label"]] += 1
    assert set(by_kind) == {*PROPOSERS, *("two: " + kind for kind in PAIR_PROPOSERS)}
    for kind, labels in by_kind.items():
        n = sum(labels.values())
        assert n > 0.1 * SCENES, (kind, n)
        assert abs(labels[True] / n - 0.5) < 4 * 0.5 / math.sqrt(n), (kind, labels)  # balanced by template
    for texts in (single, double, asked):
        cut = len(texts) * 2 // 3
        accuracy, n = text_only(texts[:cut], texts[cut:]), len(texts) - cut
        assert len(texts) > 2 * SCENES
        assert abs(accuracy - 0.5) < 4 * 0.5 / math.sqrt(n), accuracy


def test_edits_hardly_betray_themselves():
    """The kinds that change a word: better than chance, since a caption reflects what is common, but not by much."""
    texts = []
    for i in range(SCENES):
        world, rng = sample_world(Rng("edits", i), "train"), Rng("edits", i, "text")
        for caption in captions(world, rng):
            for edit in edits(caption, world, rng):
                texts += [(caption.text(), True), (edit.caption.text(), False)]
    cut = len(texts) * 2 // 3 // 2 * 2
    assert text_only(texts[:cut], texts[cut:]) < 0.58


def test_questions_have_the_types_and_right_counts():
    types = Counter()
    for i in range(300):
        world = sample_world(Rng("questions", i), "train")
        for asked in questions(world, Rng("questions", i, "q")):
            types[asked["type"]] += 1
            if asked["question"] in ("how many shapes are there?", "how many things are there?"):
                assert asked["answer"] == str(len(world.things))
            for shape in ("star", "circle"):
                if asked["question"] == f"what colour is the {shape}?":
                    assert [t.colour for t in world.things if t.shape == shape] == [asked["answer"]]
    assert {"exists", "count", "colour", "compare"} <= set(types) and min(types.values()) > 60
