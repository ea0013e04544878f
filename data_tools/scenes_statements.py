"""True and false statements about one picture or two, and questions with their answers.

No label can be guessed from the text. Two worlds are drawn that are exchangeable (a world and a twin of it, see scenes_world), a
sentence is looked for that is true of the first and false of the second by a rule that does not know which of them is the picture,
and the label says which one it was. So P(text | true) = P(text | false), whatever the grammar and for each kind of statement, as long
as a search that found nothing is given up and not repeated for the same picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmpretrain.data_tools.scenes_captions import distinct, region_of, true_relations
from mmpretrain.data_tools.scenes_language import ask, finish, sample_style, say, say_pair
from mmpretrain.data_tools.scenes_logic import (
    At,
    Bigger,
    Claim,
    Every,
    In,
    More,
    MoreIn,
    Noun,
    Number,
    PairClaim,
    Pictures,
    Relation,
    There,
    Together,
    count,
    holds,
    nouns_of,
    pair_holds,
)
from mmpretrain.data_tools.scenes_world import COLOURS, HELD_OUT, SHAPES, Rng, Thing, World, sample_world, twin

ATTEMPTS = 6  # statements looked for in a picture or a pair; about five are found
TRIES = 10
Proposer = Callable[[World, World, Rng], Claim | None]


def _some(thing: Thing, rng: Rng) -> Noun:
    """A noun of one to three attributes that fits the thing."""
    kinds = rng.choice((("colour", "shape"), ("colour", "shape"), ("shape",), ("colour",), ("colour", "shape", "size"),
                        ("colour", "shape", "material"), ("shape", "material"), ("size", "shape")))  # fmt: skip
    return Noun(**{kind: getattr(thing, kind) for kind in kinds})


def _simple(world: World, rng: Rng) -> Noun:
    thing = rng.choice(world.things)
    return rng.choice((Noun(shape=thing.shape), Noun(colour=thing.colour), Noun(material=thing.material)))


def _exists(true: World, false: World, rng: Rng) -> Claim:
    return There((_some(rng.choice(true.things), rng),), (None,))


def _none(true: World, false: World, rng: Rng) -> Claim:
    return Number((_some(rng.choice(false.things), rng),), "exactly", 0)


def _both(true: World, false: World, rng: Rng) -> Claim | None:
    nouns = {_some(thing, rng) for thing in true.things}
    return There(tuple(rng.sample(sorted(nouns, key=str), 2)), (None, None)) if len(nouns) > 1 else None


def _number(true: World, false: World, rng: Rng) -> Claim:
    noun = _simple(true, rng) if rng.chance(2, 3) else _some(rng.choice(true.things), rng)
    number, compare = count(noun, true), rng.choice(("exactly", "exactly", "at least", "at most"))
    return Number((noun,), compare, number)


def _more(true: World, false: World, rng: Rng) -> Claim | None:
    kind = rng.choice(("shape", "colour"))
    options = sorted({getattr(thing, kind) for thing in (*true.things, *false.things)})
    if len(options) < 2:
        return None
    first, second = (Noun(**{kind: value}) for value in rng.sample(options, 2))
    return More((first, second), same=rng.chance(1, 4))


def _relation(true: World, false: World, rng: Rng) -> Claim | None:
    if len(true.things) < 2:
        return None
    a, b = rng.sample(true.things, 2)
    relations = true_relations(a, b)
    if not relations:
        return None
    said = relations if len(relations) > 1 and rng.chance(1, 5) else (rng.choice(relations),)
    nouns = (distinct(a, true, rng), distinct(b, true, rng)) if rng.chance(1, 2) else (_some(a, rng), _some(b, rng))
    return Relation(nouns, said)


def _position(true: World, false: World, rng: Rng) -> Claim | None:
    thing = rng.choice(true.things)
    region = region_of(thing, rng)
    return At((_some(thing, rng),), region) if region else None


def _every(true: World, false: World, rng: Rng) -> Claim:
    thing = rng.choice(true.things)
    kind = rng.choice(("colour", "material", "size"))
    return Every((Noun(shape=thing.shape) if rng.chance(3, 4) else Noun(), Noun(**{kind: getattr(thing, kind)})))


def _bigger(true: World, false: World, rng: Rng) -> Claim | None:
    if len(true.things) < 2:
        return None
    a, b = rng.sample(true.things, 2)
    return Bigger((Noun(a.shape, a.colour), Noun(b.shape, b.colour)))


PROPOSERS: dict[str, Proposer] = {
    "exists": _exists,
    "none": _none,
    "both": _both,
    "count": _number,
    "compare": _more,
    "relation": _relation,
    "position": _position,
    "every": _every,
    "size": _bigger,
}
_TWIN_OF = {  # what another picture is redrawn in, so that a sentence of the kind can tell the two apart
    "exists": ("colour", "shape", "size", "material"),
    "none": ("colour", "shape", "size", "material"),
    "both": ("colour", "shape", "material", "permute"),
    "count": ("colour", "shape", "material"),
    "compare": ("colour", "shape"),
    "relation": ("layout", "layout", "permute", "colour"),
    "position": ("layout", "layout", "permute"),
    "every": ("colour", "size", "material"),
    "size": ("size",),
}


def sayable(claim: Claim | PairClaim, world: World) -> bool:
    """Held-out pairs are never spoken of outside the compositional split."""
    return world.hero >= 0 or not any((noun.colour, noun.shape) in HELD_OUT for noun in nouns_of(claim))


def _find(kind: str, true: World, false: World, rng: Rng) -> Claim | None:
    for _ in range(TRIES):
        claim = PROPOSERS[kind](true, false, rng)
        if claim is not None and sayable(claim, true) and holds(claim, true) is True and holds(claim, false) is False:
            return claim
    return None


def labelled(world: World, label: bool, kinds: tuple[str, ...], rng: Rng) -> tuple[Claim, str] | None:
    """A claim that is ``label`` of the world, and its kind; the other world is a twin. None where no sentence was found."""
    kind = rng.choice(kinds)
    other = twin(world, rng.choice(_TWIN_OF[kind]), rng)
    claim = _find(kind, world, other, rng) if label else _find(kind, other, world, rng)
    return None if claim is None else (claim, kind)


def statements(world: World, rng: Rng) -> list[dict[str, Any]]:
    """Up to ATTEMPTS of {"text", "label", "type"}; an attempt that fails is not repeated, which would tilt the labels."""
    found: dict[str, dict[str, Any]] = {}
    for label in rng.shuffled([True, False] * (ATTEMPTS // 2)):
        claim = labelled(world, label, tuple(PROPOSERS), rng)
        style = sample_style(rng)._replace(definite=False, several=True)
        if claim is not None:
            text = finish(say(claim[0], style), style)
            found.setdefault(text, {"text": text, "label": label, "type": claim[1]})
    return list(found.values())


def _open_question(kind: str, world: World, rng: Rng) -> tuple[str, str] | None:
    """What colour (shape, size, material) something has that only one thing is, or how many there are."""
    style = sample_style(rng)
    thing = rng.choice(world.things)
    if kind == "count":
        noun = rng.choice((Noun(), Noun(shape=rng.choice(SHAPES)), Noun(colour=rng.choice(tuple(COLOURS))), _simple(world, rng),
                           _simple(world, rng), _some(thing, rng)))  # fmt: skip
        plural = say(Number((noun,), "exactly", 2), style._replace(form=0, relation_words=1, clause=False)).removeprefix("there are two ")
        return f"how many {plural} are there?", str(count(noun, world))
    noun = rng.choice((Noun(shape=thing.shape), Noun(colour=thing.colour), Noun(thing.shape, thing.colour),
                       Noun(thing.shape, None, thing.size), Noun(thing.shape, None, None, thing.material)))  # fmt: skip
    noun = noun._replace(**{kind: None})
    if count(noun, world) != 1 or noun == Noun():
        return None
    described = say(There((noun,), (None,)), style._replace(form=0)).removeprefix("a ")
    asked = {"colour": "what colour is the {}?", "shape": "what shape is the {}?", "size": "is the {} small or large?",
             "material": "is the {} plain, striped, dotted or hollow?"}[kind]  # fmt: skip
    return asked.format(described), str(getattr(thing, kind))


_OPEN = ("count", "count", "colour", "shape", "material", "size")
_YES_NO = ("exists", "exists", "compare", "size", "relation")


def questions(world: World, rng: Rng) -> list[dict[str, str]]:
    """{"question", "answer", "type"}: exists, count, colour, compare and others. Yes or no cannot be guessed from the question."""
    found: dict[str, dict[str, str]] = {}
    for kind in _OPEN:
        asked = _open_question(kind, world, rng)
        if asked:
            found.setdefault(asked[0], {"question": asked[0], "answer": asked[1], "type": kind})
    for kind in _YES_NO:
        label = rng.chance(1, 2)
        claim = labelled(world, label, (kind,), rng)
        if claim:
            text = ask(claim[0], sample_style(rng)._replace(definite=False))
            found.setdefault(text, {"question": text, "answer": "yes" if label else "no", "type": "compare" if kind == "size" else kind})
    return list(found.values())


# Two pictures.


def _in(true: tuple[World, World], false: tuple[World, World], rng: Rng) -> PairClaim | None:
    side = rng.below(2)
    kind = rng.choice(("exists", "count", "relation", "position", "none"))
    claim = PROPOSERS[kind](true[side], false[side], rng)
    return claim and In(side, claim)


def _pictures(true: tuple[World, World], false: tuple[World, World], rng: Rng) -> PairClaim | None:
    kind = rng.choice(("exists", "both", "relation"))
    world = rng.choice((*true, *false))
    claim = PROPOSERS[kind](world, world, rng)
    return claim and Pictures(claim, rng.choice((0, 1, 2)))


def _more_in(true: tuple[World, World], false: tuple[World, World], rng: Rng) -> PairClaim:
    noun = rng.choice((Noun(), _simple(rng.choice((*true, *false)), rng), _simple(rng.choice((*true, *false)), rng)))
    return MoreIn((noun,), rng.choice((0, 1, None)))


def _together(true: tuple[World, World], false: tuple[World, World], rng: Rng) -> PairClaim:
    noun = rng.choice((Noun(), _simple(rng.choice(true), rng), _simple(rng.choice(true), rng)))
    return Together((noun,), sum(count(noun, world) for world in true))


PAIR_PROPOSERS = {"in": _in, "pictures": _pictures, "more": _more_in, "together": _together}


def sample_pair(rng: Rng, split: str) -> tuple[World, World]:
    """Two pictures that are independent but for their palette: the same few colours and shapes."""
    left = sample_world(rng, split)
    return left, sample_world(rng, split, left.palette)


def pair_statements(worlds: tuple[World, World], rng: Rng) -> list[dict[str, Any]]:
    """As ``statements``, about two pictures. The other pair has a twin of one of them, or the two exchanged."""
    found: dict[str, dict[str, Any]] = {}
    for label in rng.shuffled([True, False] * (ATTEMPTS // 2)):
        kind, other = rng.choice(tuple(PAIR_PROPOSERS)), (worlds[1], worlds[0])
        if kind not in ("in", "more") or rng.chance(3, 4):
            side = rng.below(2)
            part = rng.choice(("colour", "colour", "shape", "shape", "material", "layout", "permute"))
            changed = twin(worlds[side], part, rng)
            other = (changed, worlds[1]) if side == 0 else (worlds[0], changed)
        true, false = (worlds, other) if label else (other, worlds)
        claim = _find_pair(kind, true, false, rng)
        style = sample_style(rng)._replace(definite=False, several=True)
        if claim is not None:
            text = finish(say_pair(claim, style), style)
            found.setdefault(text, {"text": text, "label": label, "type": kind})
    return list(found.values())


def _find_pair(kind: str, true: tuple[World, World], false: tuple[World, World], rng: Rng) -> PairClaim | None:
    for _ in range(TRIES):
        claim = PAIR_PROPOSERS[kind](true, false, rng)
        if claim is None or not sayable(claim, true[0]):
            continue
        if pair_holds(claim, true) is True and pair_holds(claim, false) is False:
            return claim
    return None
