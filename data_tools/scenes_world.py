"""The world behind a generated scene: what may stand in it, how it is drawn from a seed, and near twins of it.

Everything is integer arithmetic on a stream of our own (SHA-256 of the key, then SplitMix64), so that the same key gives the same
world in every process, on every platform and with every version of Python or NumPy. Lengths are in units of 1/1024 of the side of
the picture; x grows to the right, y downwards.

Every choice that a sentence can speak of is drawn independently and uniformly given a *palette*, so that ``twin`` is exact: it
redraws one part of a world given the rest, which makes (world, twin) exchangeable. A sentence that is true of one and false of the
other therefore says nothing about which of the two is the picture: labels cannot be guessed from the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, TypeVar

T = TypeVar("T")

SIDE = 1024
COLOURS = {
    "red": (222, 30, 38),
    "yellow": (255, 214, 10),
    "green": (22, 150, 58),
    "blue": (28, 72, 220),
    "purple": (124, 44, 178),
    "pink": (255, 120, 188),
    "cyan": (20, 200, 232),
    "black": (26, 26, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
SIZES = {"small": (122, 129, 136), "large": (188, 197, 206)}  # radii
MATERIALS = ("plain", "striped", "dotted", "hollow")
# (colour, shape) pairs that no picture, caption, edit, statement or question of `train` and `val` contains. Each colour is held out once.
HELD_OUT = frozenset(
    {
        ("red", "star"),
        ("yellow", "heart"),
        ("green", "square"),
        ("blue", "triangle"),
        ("purple", "circle"),
        ("pink", "cross"),
        ("cyan", "star"),
        ("black", "heart"),
    }
)
THINGS_OF_10 = (1, 2, 2, 2, 3, 3, 3, 4, 4, 4)  # how many things stand in a picture: ten equally likely cases
GAP = 20  # between the bounding squares of two things
PLACES = 16  # tries for one thing before the layout is begun again
TWINS = ("layout", "colour", "shape", "size", "material", "permute")

_MASK = (1 << 64) - 1


class Rng:
    """A stream of random integers that is a pure function of its key, the same everywhere."""

    def __init__(self, *key: int | str) -> None:
        digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
        self._state = int.from_bytes(digest[:8], "little")

    def bits(self) -> int:
        """64 random bits (SplitMix64)."""
        self._state = x = (self._state + 0x9E3779B97F4A7C15) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        return x ^ (x >> 31)

    def below(self, n: int) -> int:
        """Uniform in {0, ..., n - 1}; the bias is below n / 2^64."""
        return (self.bits() * n) >> 64

    def chance(self, parts: int, of: int) -> bool:
        """True with probability parts / of."""
        return self.below(of) < parts

    def choice(self, items: Sequence[T]) -> T:
        return items[(self.bits() * len(items)) >> 64]

    def sample(self, items: Sequence[T], k: int) -> list[T]:
        """k different items in random order (k at most len(items))."""
        pool, size = list(items), len(items)
        for i in range(min(k, size - 1)):
            j = i + ((self.bits() * (size - i)) >> 64)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return self.sample(items, len(items))


class Thing(NamedTuple):
    """One object. (x, y) is the centre, ``radius`` half of its nominal extent, ``turn`` an index of a small rotation."""

    shape: str
    colour: str
    size: str
    material: str
    x: int
    y: int
    radius: int
    turn: int


Combination = tuple[str, str]  # (colour, shape)


class World(NamedTuple):
    """A scene. ``hero`` is the index of the thing that is drawn from HELD_OUT (compositional split), or -1."""

    things: tuple[Thing, ...]
    background: tuple[int, int, int]
    palette: tuple[Combination, ...]
    hero: int = -1

    def combinations(self, index: int) -> tuple[Combination, ...]:
        """What (colour, shape) the thing of that index was drawn from, uniformly."""
        return _held_out() if index == self.hero else self.palette


@cache
def _held_out() -> tuple[Combination, ...]:
    return tuple(sorted(HELD_OUT))


def _palette(rng: Rng) -> tuple[Combination, ...]:
    """Two to five colours and two to four shapes: few enough that things share them, so that counts and bindings matter."""
    colours = rng.sample(tuple(COLOURS), 2 + rng.below(4))
    shapes = rng.sample(SHAPES, 2 + rng.below(3))
    return tuple((colour, shape) for colour in colours for shape in shapes if (colour, shape) not in HELD_OUT)


def _place(things: Sequence[Thing], rng: Rng) -> tuple[Thing, ...]:
    """Fresh centres, a pure function of the radii and the stream: no two bounding squares come closer than GAP."""
    while True:
        placed: list[tuple[int, int, int]] = []
        for thing in things:
            edge = thing.radius + 16
            room, reach = SIDE - 2 * edge, thing.radius + GAP
            for _ in range(PLACES):
                bits = rng.bits()
                x, y = edge + ((bits >> 32) * room >> 32), edge + ((bits & 0xFFFFFFFF) * room >> 32)
                for px, py, radius in placed:
                    if -reach - radius < x - px < reach + radius and -reach - radius < y - py < reach + radius:
                        break
                else:
                    placed.append((x, y, thing.radius))
                    break
        if len(placed) == len(things):
            return tuple(thing._replace(x=x, y=y) for thing, (x, y, _) in zip(things, placed, strict=True))


def _sized(thing: Thing, rng: Rng) -> Thing:
    size = rng.choice(tuple(SIZES))
    return thing._replace(size=size, radius=rng.choice(SIZES[size]))


def sample_world(rng: Rng, split: str, palette: tuple[Combination, ...] | None = None) -> World:
    """A world of ``split``: "compositional" worlds hold at least one pair of HELD_OUT, all others none. The palette may be given."""
    background = (226 + rng.below(26), 226 + rng.below(26), 226 + rng.below(26))
    palette = palette or _palette(rng)
    count = rng.choice(THINGS_OF_10)
    world = World((), background, palette, rng.below(count) if split.startswith("compositional") else -1)
    things = []
    for index in range(count):
        colour, shape = rng.choice(world.combinations(index))
        thing = Thing(shape, colour, "", rng.choice(MATERIALS), 0, 0, 0, rng.below(3))
        things.append(_sized(thing, rng))
    return world._replace(things=_place(things, rng))


def twin(world: World, part: str, rng: Rng) -> World:
    """``world`` with one of TWINS redrawn from its exact distribution given everything else (so it may come out the same)."""
    things = list(world.things)
    if part == "colour" or part == "shape":
        keep = "shape" if part == "colour" else "colour"
        at = 1 if part == "colour" else 0
        for index, thing in enumerate(things):
            open_to = [pair for pair in world.combinations(index) if pair[at] == getattr(thing, keep)]
            colour, shape = rng.choice(open_to)
            things[index] = thing._replace(colour=colour, shape=shape)
    elif part == "material":
        things = [thing._replace(material=rng.choice(MATERIALS)) for thing in things]
    elif part == "size":
        return world._replace(things=_place([_sized(thing, rng) for thing in things], rng))
    elif part == "layout":
        return world._replace(things=_place(things, rng))
    elif part == "permute":
        while True:  # ends: the order that the world has is one of those that pass
            colours = rng.shuffled([thing.colour for thing in things])
            if all((c, t.shape) in world.combinations(i) for i, (c, t) in enumerate(zip(colours, things, strict=True))):
                break
        things = [thing._replace(colour=colour) for thing, colour in zip(things, colours, strict=True)]
    else:
        raise ValueError(f"unknown part {part!r}: one of {', '.join(TWINS)}")
    return world._replace(things=tuple(things))
