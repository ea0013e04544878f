"""True captions of a world. Each text is a claim first, and checked as a claim."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mmpretrain.data_tools.scenes_language import ALSO, Style, finish, sample_style, say
from mmpretrain.data_tools.scenes_logic import (
    REGIONS,
    At,
    Both,
    Noun,
    Number,
    Of,
    Relation,
    Single,
    There,
    count,
    holds,
    located,
    related,
)
from mmpretrain.data_tools.scenes_world import Rng, Thing, World

CAPTIONS = 5


class Caption(NamedTuple):
    """A claim in parts, said one after another in one style."""

    parts: tuple[Single, ...]
    style: Style

    def text(self) -> str:
        first = self.parts[0]
        if len(self.parts) == 2 and isinstance(first, Number):  # "three shapes: a red circle, ..."
            total = say(first, self.style._replace(relation_words=1))
            return finish(f"{total}: {say(self.parts[1], self.style._replace(form=0))}", self.style)
        if len(self.parts) > 1 and isinstance(self.parts[-1], There):
            later = self.style._replace(form=1 if isinstance(first, Of) else ALSO)
            several = self.style._replace(several=True)
            said = [say(part, several) for part in self.parts[:-1]] + [say(self.parts[-1], later)]
            joiner = (", and ", ". ")[self.style.joiner % 2]
            return finish(joiner.join(said), self.style)
        return finish(say(Both(self.parts), self.style), self.style)


def _mentions(world: World, rng: Rng) -> dict[tuple[str, str], tuple[bool, bool]]:
    """Which (colour, shape) pairs are told with size and with material: the same for equal pairs, so that they can be counted."""
    return {(t.colour, t.shape): rng.choice(((False, False), (False, False), (True, False), (False, True), (True, True)))
            for t in world.things}  # fmt: skip


def _full(thing: Thing, size: bool = False, material: bool = False) -> Noun:
    return Noun(thing.shape, thing.colour, thing.size if size else None, thing.material if material else None)


def _list(nouns: list[Noun], explicit: bool = False) -> There:
    """Equal nouns become one, counted; ``explicit`` says "one" where it would say "a"."""
    unique = list(dict.fromkeys(nouns))
    counts = [nouns.count(noun) for noun in unique]
    return There(tuple(unique), tuple(n if n > 1 or explicit else None for n in counts))


def distinct(thing: Thing, world: World, rng: Rng) -> Noun:
    """Colour and shape, and size and material where it takes them to fit only this thing (or now and then for no reason)."""
    for size, material in rng.choice((((False, False), (True, False), (False, True)), ((True, False),), ((False, False), (False, True)))):
        noun = _full(thing, size, material)
        if count(noun, world) == 1:
            return noun
    return _full(thing, True, True)


def _listing(world: World, rng: Rng) -> tuple[Single, ...]:
    told = _mentions(world, rng)
    return (_list([_full(t, *told[t.colour, t.shape]) for t in rng.shuffled(world.things)], explicit=rng.chance(1, 3)),)


def _bare_listing(world: World, rng: Rng) -> tuple[Single, ...]:
    return (_list([_full(t) for t in rng.shuffled(world.things)], explicit=rng.chance(1, 3)),)


def _counting(world: World, rng: Rng) -> tuple[Single, ...]:
    things = rng.shuffled(world.things)
    case = rng.below(4)
    if case == 0:
        by = rng.choice(("colour", "colour", "material", "size"))
        noun = Noun(**{by: getattr(things[0], by)})
        told = [Noun(t.shape, None if by == "colour" else t.colour) for t in rng.shuffled(things)]  # never contradicts a wrong number
        return (Of((noun,), count(noun, world), len(things)), _list(told))
    if case == 1:
        return (_list([Noun(colour=t.colour) for t in things], explicit=True),)
    if case == 2:
        return (_list([Noun(shape=t.shape) for t in things], explicit=True),)
    return (Number((Noun(),), "exactly", len(things)), _list([_full(t) for t in things]))


def true_relations(a: Thing, b: Thing) -> tuple[str, ...]:
    return tuple(relation for relation in ("above", "below", "left of", "right of") if related(a, relation, b))


def _relating(world: World, rng: Rng) -> tuple[Single, ...] | None:
    if len(world.things) < 2:
        return None
    a, b, *rest = rng.shuffled(world.things)
    true = true_relations(a, b)
    if not true:
        return None
    relations = true if rng.chance(1, 4) else (rng.choice(true),)
    parts: list[Single] = [Relation((distinct(a, world, rng), distinct(b, world, rng)), relations)]
    if len(rest) == 2 and rng.chance(1, 3) and true_relations(*rest):
        other = rng.choice(true_relations(*rest))
        parts.append(Relation((distinct(rest[0], world, rng), distinct(rest[1], world, rng)), (other,)))
    elif rest:
        listed = _list([_full(thing) for thing in rest])
        if None in listed.counts and any(count(n, world) > 1 for n in listed.nouns):
            listed = _list([distinct(thing, world, rng) for thing in rest])
        if not holds(listed, world):
            return None
        parts.append(listed)
    return tuple(parts)


def region_of(thing: Thing, rng: Rng) -> str | None:
    true = [region for region in REGIONS if located(thing, region)]
    return rng.choice(true) if true else None


def _locating(world: World, rng: Rng) -> tuple[Single, ...] | None:
    parts: list[Single] = []
    for thing in rng.shuffled(world.things)[:3]:
        region = region_of(thing, rng)
        if region is not None:
            parts.append(At((distinct(thing, world, rng),), region))
    return tuple(parts) or None


_Family = Callable[[World, Rng], tuple[Single, ...] | None]
_FAMILIES: tuple[tuple[_Family, ...], ...] = (  # the i-th caption comes from one of the i-th families
    (_bare_listing,),
    (_listing,),
    (_relating, _locating, _listing),
    (_relating, _relating, _locating),
    (_counting, _locating),
)


def captions(world: World, rng: Rng) -> list[Caption]:
    """CAPTIONS different true captions in random order; at least three of them name every thing with colour and shape or count them."""
    found: dict[str, Caption] = {}
    for families in _FAMILIES:
        for _ in range(12):
            parts = rng.choice(families)(world, rng) or _listing(world, rng)
            style = sample_style(rng)
            if style.definite and any(count(n, world) != 1 for part in parts if isinstance(part, Relation | At) for n in part.nouns):
                style = style._replace(definite=False)
            caption = Caption(parts, style)
            text = caption.text()
            if text not in found:
                if holds(Both(parts), world) is not True:
                    raise AssertionError(f"the caption {text!r} is not true of {world}")
                found[text] = caption
                break
    return rng.shuffled(list(found.values()))
