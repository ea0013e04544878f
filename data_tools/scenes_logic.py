"""What a sentence claims, as data, and the one evaluator that says whether it holds.

``holds(claim, worlds)`` is three-valued: None means that a careful person could argue (two things almost level, "all the stars are
red" where there is no star). Only claims that are clearly true or clearly false are ever written into a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mmpretrain.data_tools.scenes_world import SIDE, Thing, World

MARGIN = 150  # units of 1/1024: centres closer than this on an axis are level, neither left nor right
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}  # axis, direction
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
REGIONS = {
    "left": ("left",),
    "right": ("right",),
    "top": ("top",),
    "bottom": ("bottom",),
    "top left": ("top", "left"),
    "top right": ("top", "right"),
    "bottom left": ("bottom", "left"),
    "bottom right": ("bottom", "right"),
}
_NEAR, _FAR = SIDE * 3 // 8, SIDE * 5 // 8
ATTRIBUTES = ("shape", "colour", "size", "material")


class Noun(NamedTuple):
    """A description; None leaves an attribute open ("a red shape" has no shape)."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    material: str | None = None

    def fits(self, thing: Thing) -> bool:
        return (
            (self.shape is None or self.shape == thing.shape)
            and (self.colour is None or self.colour == thing.colour)
            and (self.size is None or self.size == thing.size)
            and (self.material is None or self.material == thing.material)
        )


class There(NamedTuple):
    """Different things fit the nouns; where a count is given, exactly so many things fit that noun (None: "a", at least one)."""

    nouns: tuple[Noun, ...]
    counts: tuple[int | None, ...]


class Relation(NamedTuple):
    """Some thing that fits the first noun stands in all ``relations`` to another one that fits the second."""

    nouns: tuple[Noun, Noun]
    relations: tuple[str, ...]


class At(NamedTuple):
    """Some thing that fits the noun lies in ``region``."""

    nouns: tuple[Noun]
    region: str


class Number(NamedTuple):
    """How many things fit the noun: ``compare`` is "exactly", "at least" or "at most"."""

    nouns: tuple[Noun]
    compare: str
    count: int  # type: ignore[assignment]  # of a tuple's methods


class Of(NamedTuple):
    """"Two of the three shapes are red": exactly ``count`` of exactly ``total`` things fit."""

    nouns: tuple[Noun]
    count: int  # type: ignore[assignment]  # of a tuple's methods
    total: int


class More(NamedTuple):
    """More things fit the first noun than the second (``same``: equally many, and at least one)."""

    nouns: tuple[Noun, Noun]
    same: bool = False


class Every(NamedTuple):
    """Everything that fits the first noun fits the second; None where nothing fits the first."""

    nouns: tuple[Noun, Noun]


class Bigger(NamedTuple):
    """The one thing that fits the first noun is large and that of the second small; None unless each fits exactly one thing."""

    nouns: tuple[Noun, Noun]


class Both(NamedTuple):
    """All parts hold."""

    parts: tuple[Claim, ...]


Single = There | Relation | At | Number | Of | More | Every | Bigger  # all with ``nouns``
Claim = Single | Both


class In(NamedTuple):
    """``claim`` holds of the picture ``side`` of a pair (0 left, 1 right)."""

    side: int
    claim: Claim


class Pictures(NamedTuple):
    """``claim`` holds of exactly ``count`` of the two pictures."""

    claim: Claim
    count: int  # type: ignore[assignment]  # of a tuple's methods


class MoreIn(NamedTuple):
    """More things fit the noun in the picture ``side`` than in the other one; ``side`` None: equally many in both."""

    nouns: tuple[Noun]
    side: int | None


class Together(NamedTuple):
    """Exactly ``count`` things fit the noun in both pictures together."""

    nouns: tuple[Noun]
    count: int  # type: ignore[assignment]  # of a tuple's methods


PairClaim = In | Pictures | MoreIn | Together


def all_of(values: Iterable[bool | None]) -> bool | None:
    """Kleene's and."""
    result: bool | None = True
    for value in values:
        if value is False:
            return False
        if value is None:
            result = None
    return result


def any_of(values: Iterable[bool | None]) -> bool | None:
    """Kleene's or."""
    result: bool | None = False
    for value in values:
        if value is True:
            return True
        if value is None:
            result = None
    return result


def related(a: Thing, relation: str, b: Thing) -> bool | None:
    """Whether a is e.g. left of b; None where their centres are level to within MARGIN."""
    axis, direction = RELATIONS[relation]
    ahead = ((a.x - b.x) if axis == 0 else (a.y - b.y)) * direction
    if ahead >= MARGIN:
        return True
    return False if ahead <= -MARGIN else None


def located(thing: Thing, region: str) -> bool | None:
    """Whether the centre lies in the outer 3/8 on the sides that ``region`` names; None in the middle quarter."""
    values: list[bool | None] = []
    for side in REGIONS[region]:
        at = thing.x if side in ("left", "right") else thing.y
        low = side in ("left", "top")
        values.append(low if at <= _NEAR else not low if at >= _FAR else None)
    return all_of(values)


def count(noun: Noun, world: World) -> int:
    """How many things fit."""
    return sum(noun.fits(thing) for thing in world.things)


def _there(claim: There, world: World) -> bool:
    slots: list[list[int]] = []
    for noun, wanted in zip(claim.nouns, claim.counts, strict=True):
        fitting = [index for index, thing in enumerate(world.things) if noun.fits(thing)]
        if not fitting or (wanted is not None and len(fitting) != wanted):
            return False
        slots += [fitting] * (wanted or 1)
    return len(slots) <= len(world.things) and _assigned(slots, set())


def _assigned(slots: list[list[int]], taken: set[int]) -> bool:
    """Whether every slot can have a thing of its own."""
    if not slots:
        return True
    return any(_assigned(slots[1:], taken | {index}) for index in slots[0] if index not in taken)


def _relation(claim: Relation, world: World) -> bool | None:
    first, second = claim.nouns
    return any_of(
        all_of(related(a, relation, b) for relation in claim.relations)
        for a in world.things
        if first.fits(a)
        for b in world.things
        if b is not a and second.fits(b)
    )


def _bigger(claim: Bigger, world: World) -> bool | None:
    first, second = ([t for t in world.things if noun.fits(t)] for noun in claim.nouns)
    if len(first) != 1 or len(second) != 1 or first[0] is second[0]:
        return None
    return first[0].size == "large" and second[0].size == "small"


def holds(claim: Claim, world: World) -> bool | None:
    """True or False where it is clear, None where one could argue."""
    if isinstance(claim, There):
        return _there(claim, world)
    if isinstance(claim, Relation):
        return _relation(claim, world)
    if isinstance(claim, Both):
        return all_of(holds(part, world) for part in claim.parts)
    if isinstance(claim, At):
        return any_of(located(thing, claim.region) for thing in world.things if claim.nouns[0].fits(thing))
    if isinstance(claim, Bigger):
        return _bigger(claim, world)
    if isinstance(claim, Every):
        some = [thing for thing in world.things if claim.nouns[0].fits(thing)]
        return all(claim.nouns[1].fits(thing) for thing in some) if some else None
    if isinstance(claim, More):
        a, b = (count(noun, world) for noun in claim.nouns)
        return (a == b and a > 0) if claim.same else a > b
    number = count(claim.nouns[0], world)
    if isinstance(claim, Of):
        return number == claim.count and len(world.things) == claim.total
    return {"exactly": number == claim.count, "at least": number >= claim.count, "at most": number <= claim.count}[claim.compare]


def pair_holds(claim: PairClaim, worlds: Sequence[World]) -> bool | None:
    """``holds`` for a claim about two pictures."""
    if isinstance(claim, In):
        return holds(claim.claim, worlds[claim.side])
    if isinstance(claim, Pictures):
        values = [holds(claim.claim, world) for world in worlds]
        return None if None in values else values.count(True) == claim.count
    counts = [count(claim.nouns[0], world) for world in worlds]
    if isinstance(claim, Together):
        return sum(counts) == claim.count
    if claim.side is None:
        return counts[0] == counts[1]
    return counts[claim.side] > counts[1 - claim.side]


def nouns_of(claim: Claim | PairClaim) -> list[Noun]:
    """Every noun of a claim."""
    if isinstance(claim, Both):
        return [noun for part in claim.parts for noun in nouns_of(part)]
    if isinstance(claim, In | Pictures):
        return nouns_of(claim.claim)
    return list(claim.nouns)
