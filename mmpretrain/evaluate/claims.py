"""What a caption claims that a picture can be held to: things of a colour and a shape, how many, and which is left or right of which.

Read with the parser of ``data.scenegraph_parse``. The scenes bear out all claims that are found in the 2,560 captions of ``scenes:val``,
and each of the 512 scenes has a caption that names every thing in it (``tests/evaluate/test_claims.py``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mmpretrain.data.scenegraph_parse import parse
from mmpretrain.types import Sample

Thing = tuple[str, str]  # colour, shape

_NUMBERS = {word: number for number, word in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight"), 1)}
_SIDES = {
    phrase: relation
    for relation in ("left", "right")
    for phrase in (f"{relation} of", f"to the {relation} of", f"on the {relation} of", f"on the {relation} side of")
}
_CLAUSES = re.compile(  # at full stops, and where a relation stands in front of its clause: "left of B there is A, and above D there is C"
    r"[.;]|,(?: and)?(?=\s+(?:(?:to|on) the )?(?:left|right|above|below|under|higher|lower)\b)", re.IGNORECASE
)


class Placed(NamedTuple):
    """A thing of a picture with its centre, in shares of width and height."""

    thing: Thing
    x: float
    y: float


class Beside(NamedTuple):
    """``first`` is left, or right, of ``second``."""

    first: Thing
    side: str  # "left" or "right"
    second: Thing


class Claims(NamedTuple):
    """Of one caption."""

    things: Counter[Thing]  # named with colour and shape, and how often
    beside: tuple[Beside, ...]  # of things of which both are named so, each of them once

    @classmethod
    def none(cls) -> Claims:
        """Nothing."""
        return cls(Counter(), ())


class Words(NamedTuple):
    """The colours and the shapes that captions may name."""

    colours: tuple[str, ...]
    shapes: tuple[str, ...]

    def shape(self, word: str) -> str | None:
        """The shape that a noun names, in the singular or the plural."""
        word = word.lower()
        return next((shape for shape in self.shapes if word in (shape, f"{shape}s", f"{shape}es")), None)


def things_of(meta: Mapping[str, Any], size: tuple[int, int] | None = None) -> list[Placed] | None:
    """The annotated things of a sample (``objects`` with ``colour``, ``shape`` and ``box`` [x, y, width, height] in pixels); None where one
    lacks any of them or has another form, or nothing says how large the picture is.

    Args:
        size: width and height of the picture; None: ``width`` and ``height`` of ``meta``.
    """
    size, objects = size or (meta.get("width"), meta.get("height")), meta.get("objects")
    if not isinstance(objects, list) or not all(_is_number(side) and side >= 1 for side in size):
        return None
    found = []
    for item in objects:
        box = item.get("box") if isinstance(item, dict) else None
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or not item.get("colour") or not item.get("shape"):
            return None
        x, y, width, height = (float(side) for side in box)
        found.append(Placed((str(item["colour"]), str(item["shape"])), (x + width / 2) / size[0], (y + height / 2) / size[1]))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def claims(caption: str, words: Words) -> Claims:
    """What a caption claims. Things without a colour or a shape ("two things are striped") are no claims here."""
    counted: Counter[Thing] = Counter()
    beside: list[Beside] = []
    for clause in _CLAUSES.split(caption):
        graph = parse(clause)
        named: list[Thing | None] = []
        for number, (start, end) in enumerate(graph["objects"]):
            attributes = [(a, clause[a:b].lower()) for a, b, owner in graph["attributes"] if owner == number]
            colours = [text for _, text in attributes if text in words.colours]
            shape = words.shape(clause[start:end])
            thing = (colours[0], shape) if shape is not None and len(colours) == 1 else None
            named.append(thing)
            if thing is not None:
                counted[thing] += _count(clause[: min([start, *(a for a, _ in attributes)])])
        for start, end, first, second in graph["relations"]:
            side, one, other = _SIDES.get(" ".join(clause[start:end].lower().split())), named[first], named[second]
            if side is not None and one is not None and other is not None:
                beside.append(Beside(one, side, other))
    return Claims(counted, tuple(claim for claim in beside if counted[claim.first] == counted[claim.second] == 1))


def _count(before: str) -> int:
    """The number that stands in front of a noun phrase; 1 where there is none."""
    return _NUMBERS.get(before.split()[-1].lower(), 1) if before.split() else 1


def holds(claim: Beside, things: Sequence[Placed]) -> bool:
    """Whether some thing of the first kind is on the claimed side of some of the second, by their centres."""
    firsts, seconds = ([p.x for p in things if p.thing == kind] for kind in (claim.first, claim.second))
    return any((a < b) if claim.side == "left" else (a > b) for a in firsts for b in seconds)


def shown(claim: Beside, things: Sequence[Placed]) -> bool:
    """Whether both things are there, two where they are of one kind."""
    have = Counter(placed.thing for placed in things)
    return not Counter((claim.first, claim.second)) - have


def agrees(found: Claims, things: Sequence[Placed]) -> bool:
    """Whether the annotated things of a picture bear out all claims."""
    return not found.things - Counter(placed.thing for placed in things) and all(holds(claim, things) for claim in found.beside)


class Prompt(NamedTuple):
    """A caption to generate by, with what it claims."""

    sample: int  # place of its sample among those given
    text: str
    claims: Claims


def prompt_of(number: int, sample: Sample, words: Words, fits: Callable[[str], bool] = lambda caption: True) -> Prompt | None:
    """The caption of a sample to generate by: the first one that ``fits`` and names every thing of the scene with colour and shape, one
    that says what is left or right of what before others; None where there is none."""
    things = things_of(sample.meta)
    if not things:
        return None
    whole = Counter(placed.thing for placed in things)
    found = [Prompt(number, caption, claims(caption, words)) for caption in sample.captions if fits(caption)]
    found = [prompt for prompt in found if prompt.claims.things == whole and agrees(prompt.claims, things)]
    return min(found, key=lambda prompt: not prompt.claims.beside, default=None)
