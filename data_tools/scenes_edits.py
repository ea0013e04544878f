"""Minimal edits of captions that are false of the picture: one word, one number, or two words exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from mmpretrain.data_tools.scenes_captions import Caption
from mmpretrain.data_tools.scenes_language import words
from mmpretrain.data_tools.scenes_logic import ATTRIBUTES, REGIONS, At, Both, Noun, Of, Relation, Single, There, holds
from mmpretrain.data_tools.scenes_world import COLOURS, HELD_OUT, MATERIALS, SHAPES, SIZES, Rng, World

KINDS = ("colour", "shape", "size", "material", "count", "relation", "swap", "position")
PERMUTATIONS = ("relation", "swap")  # kinds that keep the bag of words


class Edit(NamedTuple):
    """A false neighbour of a caption."""

    caption: Caption
    kind: str


def _with_noun(caption: Caption, part: int, slot: int, noun: Noun) -> Caption:
    old = caption.parts[part]
    nouns = (*old.nouns[:slot], noun, *old.nouns[slot + 1 :])
    return _with_part(caption, part, old._replace(nouns=nouns))  # type: ignore[arg-type]  # as many as before


def _with_part(caption: Caption, index: int, part: Single) -> Caption:
    return caption._replace(parts=(*caption.parts[:index], part, *caption.parts[index + 1 :]))


def _slots(caption: Caption) -> list[tuple[int, int, Noun]]:
    return [(p, s, noun) for p, part in enumerate(caption.parts) for s, noun in enumerate(part.nouns)]


def values(kind: str, noun: Noun, world: World, rng: Rng) -> list[str]:
    """What the attribute could be instead. Half of the time from the palette of the world: what is also in the picture, or might be."""
    if kind in ("size", "material"):
        options: tuple[str, ...] = tuple(SIZES) if kind == "size" else MATERIALS
    else:
        options = tuple(COLOURS) if kind == "colour" else SHAPES
        if rng.chance(1, 2):
            near = {pair[0 if kind == "colour" else 1] for pair in world.palette}
            options = tuple(option for option in options if option in near)
    old = getattr(noun, kind)
    return [option for option in options if option != old]


def _attribute(kind: str, caption: Caption, world: World, rng: Rng) -> Caption | None:
    slots = [slot for slot in _slots(caption) if getattr(slot[2], kind) is not None]
    if not slots:
        return None
    part, slot, noun = rng.choice(slots)
    options = values(kind, noun, world, rng)
    return _with_noun(caption, part, slot, noun._replace(**{kind: rng.choice(options)})) if options else None


def _exchange(caption: Caption, world: World, rng: Rng) -> Caption | None:
    """One attribute of two nouns exchanged, or the places of two things."""
    slots = _slots(caption)
    if len(slots) < 2:
        return None
    (p, s, a), (q, t, b) = rng.sample(slots, 2)
    if isinstance(caption.parts[p], At) and isinstance(caption.parts[q], At) and rng.chance(1, 2):
        return _with_noun(_with_noun(caption, p, s, b), q, t, a)
    kinds = [k for k in ATTRIBUTES if None not in (getattr(a, k), getattr(b, k)) and getattr(a, k) != getattr(b, k)]
    if not kinds:
        return None
    kind = rng.choice(kinds)
    first, second = a._replace(**{kind: getattr(b, kind)}), b._replace(**{kind: getattr(a, kind)})
    return _with_noun(_with_noun(caption, p, s, first), q, t, second)


def _turn(caption: Caption, world: World, rng: Rng) -> Caption | None:
    at = [(i, part) for i, part in enumerate(caption.parts) if isinstance(part, Relation)]
    if not at:
        return None
    index, part = rng.choice(at)
    return _with_part(caption, index, part._replace(nouns=(part.nouns[1], part.nouns[0])))


def _move(caption: Caption, world: World, rng: Rng) -> Caption | None:
    at = [(i, part) for i, part in enumerate(caption.parts) if isinstance(part, At)]
    if not at:
        return None
    index, part = rng.choice(at)
    taken = {other.region for _, other in at}
    like = [r for r in REGIONS if r not in taken and (" " in r) == (" " in part.region)]
    if not like:
        return None
    return _with_part(caption, index, part._replace(region=rng.choice(like)))


def _step(old: int, most: int, rng: Rng) -> int | None:
    """A neighbouring number. Ones, by far the most frequent numbers, are often left alone: so edits do not betray themselves by "two"."""
    if old == 1:
        return 2 if most > 1 and rng.chance(1, 4) else None
    return old + 1 if old < most and rng.chance(1, 5) else old - 1


def _recount(caption: Caption, world: World, rng: Rng) -> Caption | None:
    """Another number, or a thing moved from one noun of a list to another ("two stars and a heart": "a star and two hearts")."""
    at = [(i, part) for i, part in enumerate(caption.parts) if isinstance(part, There | Of)]
    if not at:
        return None
    index, part = rng.choice(at)
    if isinstance(part, Of):
        new = _step(part.count, part.total, rng)
        return None if new is None else _with_part(caption, index, part._replace(count=new))
    counts = list(part.counts)
    explicit, slot = None not in counts, rng.below(len(counts))
    if len(counts) > 1 and rng.chance(1, 2):
        other = (slot + 1 + rng.below(len(counts) - 1)) % len(counts)
        fewer = (counts[other] or 1) - 1
        if fewer < 1:
            return None
        counts[slot], counts[other] = (counts[slot] or 1) + 1, fewer if fewer > 1 or explicit else None
    elif explicit:
        counts[slot] = _step(counts[slot] or 1, 4 - sum(n or 1 for n in counts) + (counts[slot] or 1), rng)
        if counts[slot] is None:
            return None
    else:
        return None
    return _with_part(caption, index, part._replace(counts=tuple(counts)))


def _editors(kind: str) -> Callable[[Caption, World, Rng], Caption | None]:
    if kind in ATTRIBUTES:
        return lambda caption, world, rng: _attribute(kind, caption, world, rng)
    return {"relation": _turn, "swap": _exchange, "position": _move, "count": _recount}[kind]


def _sayable(caption: Caption, world: World) -> bool:
    """No noun twice in one list; no held-out pair outside the compositional split."""
    if any(isinstance(part, There) and len(set(part.nouns)) < len(part.nouns) for part in caption.parts):
        return False
    return world.hero >= 0 or not any((noun.colour, noun.shape) in HELD_OUT for _, _, noun in _slots(caption))


def edits(caption: Caption, world: World, rng: Rng) -> Iterator[Edit]:
    """At most one edit of each of KINDS, every one false of the world; those of PERMUTATIONS keep the words."""
    before = caption.text()
    bag = sorted(words(before))
    seen = {before}
    for kind in KINDS:
        editor = _editors(kind)
        for _ in range(3):
            changed = editor(caption, world, rng)
            if changed is None:
                continue
            if not _sayable(changed, world) or holds(Both(changed.parts), world) is not False:
                continue
            text = changed.text()
            if text in seen or (kind in PERMUTATIONS and sorted(words(text)) != bag):
                continue
            seen.add(text)
            yield Edit(changed, kind)
            break
