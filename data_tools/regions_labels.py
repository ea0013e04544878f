"""Labelled boxes of samples: class and attributes of each, and the vocabulary that an extractor learns from them.

Three layouts are read from ``KEY.json``: ``objects`` (generated scenes, Visual Genome), ``regions`` (NLVR, COCO) and ``images``, a list
with ``objects`` or ``regions`` for each picture of a sample of several. A box is ``box`` or ``bbox``: ``[x, y, width, height]`` in pixels.
Pictures of one sample stand side by side (``data.decode.join``), and boxes move with them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.regions_info import Group
from mmpretrain.data.tags import CLASS_FIELDS

BOX_FIELDS = ("box", "bbox")
ATTRIBUTE_FIELDS = ("colour", "color", "size", "material")
MAX_CLASSES, MAX_ATTRIBUTES = 1600, 400  # as BUTD has them; rarer ones are left out
NONE = "none"


class Thing(NamedTuple):
    """One labelled box."""

    box: tuple[float, float, float, float]  # x1 y1 x2 y2 in pixels of the (joined) picture
    name: str | None  # its class
    named: dict[str, str]  # attributes of named kinds
    listed: tuple[str, ...]  # attributes in a list


def things(meta: Mapping[str, Any], sizes: Sequence[tuple[int, int]]) -> list[Thing]:
    """The labelled boxes of a sample, clipped to their pictures; those under a pixel and crowds are left out.

    Args:
        meta: the sample's JSON.
        sizes: (width, height) of each picture.

    Raises:
        BadSample: an annotation that is not of the layouts above.
    """
    graphs = meta["images"] if isinstance(meta.get("images"), list) and len(meta["images"]) == len(sizes) else [meta]
    found, left = [], 0
    for graph, (width, height) in zip(graphs, sizes):
        listed = (graph.get("objects") or graph.get("regions") or []) if isinstance(graph, Mapping) else None
        if not isinstance(listed, list) or not all(isinstance(one, Mapping) for one in listed):
            raise BadSample("json.objects or json.regions is not a list of objects")
        made = [_thing(one, left, width, height) for one in listed if not one.get("crowd")]
        found += [thing for thing in made if thing is not None]
        left += width
    return found


def _thing(one: Mapping[str, Any], left: int, width: int, height: int) -> Thing | None:
    named_boxes = [one[field] for field in BOX_FIELDS if field in one]
    values = next((found for found in named_boxes if isinstance(found, list)), named_boxes[0] if named_boxes else None)
    numbers = [float(v) for v in values if isinstance(v, int | float)] if isinstance(values, list) else []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise BadSample(f"a labelled box is {values!r}, not [x, y, width, height]")
    x, y, w, h = numbers
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    if x2 - x1 < 1 or y2 - y1 < 1:
        return None
    name = next((one[field] for field in CLASS_FIELDS if isinstance(one.get(field), str)), None)
    named = {field: one[field] for field in ATTRIBUTE_FIELDS if isinstance(one.get(field), str) and one[field] != name}
    listed = one.get("attributes")
    return Thing(
        (x1 + left, y1, x2 + left, y2),
        name,
        named,
        tuple(a for a in listed if isinstance(a, str)) if isinstance(listed, list) else (),
    )


class Vocabulary(NamedTuple):
    """Names of classes and, kind by kind, of attributes."""

    classes: tuple[str, ...]
    kinds: tuple[tuple[str, tuple[str, ...]], ...]  # (name of the kind, names of its attributes)

    @property
    def attributes(self) -> tuple[str, ...]:
        """All attributes, kind after kind."""
        return tuple(name for _, names in self.kinds for name in names)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Where each kind stands among :attr:`attributes`."""
        ends = np.cumsum([0] + [len(names) for _, names in self.kinds]).tolist()
        return tuple(Group(kind, ends[n], ends[n + 1]) for n, (kind, _) in enumerate(self.kinds))

    def targets(self, thing: Thing) -> list[int]:
        """[class, attribute of the first kind, ...] as numbers within each; -1 where a thing has none, or one that is not known."""
        found = [self.classes.index(thing.name) if thing.name in self.classes else -1]
        for place, (kind, names) in enumerate(self.kinds):
            if kind in ATTRIBUTE_FIELDS:
                value = thing.named.get(kind)
            elif names[0] == NONE:
                value = next((a for a in thing.listed if a in names), NONE)
            else:
                value = thing.listed[place] if place < len(thing.listed) else None
            found.append(names.index(value) if value in names else -1)
        return found


def learn(found: Iterable[Thing]) -> Vocabulary:
    """The vocabulary of these things, names in alphabetical order.

    Named attributes make one kind each. Lists of equal length whose places share no word (NLVR: colour, size) make one kind for each place;
    other lists make one kind of the first attribute that is known, with ``none`` (BUTD trains on one attribute too).

    Raises:
        DataError: no labelled box has a class.
    """
    seen = list(found)
    classes = Counter(thing.name for thing in seen if thing.name)
    if not classes:
        raise DataError(
            f"--fit: no labelled box has a class ({', '.join(CLASS_FIELDS)}) in json.objects or json.regions; see docs/regions.md"
        )
    kinds = []
    for field in ATTRIBUTE_FIELDS:
        if names := _common(Counter(thing.named[field] for thing in seen if field in thing.named), MAX_ATTRIBUTES):
            kinds.append((field, names))
    lists = [thing.listed for thing in seen if thing.listed]
    if lists and not kinds:
        places = [set(column) for column in zip(*lists)]
        apart = len({len(one) for one in lists}) == 1 and len(set().union(*places)) == sum(map(len, places))
        if apart:
            kinds = [(f"attribute{place + 1}", tuple(sorted(names))) for place, names in enumerate(places)]
        else:
            names = _common(Counter(name for one in lists for name in one), MAX_ATTRIBUTES)
            kinds = [("attribute", (NONE, *(name for name in names if name != NONE)))]
    return Vocabulary(_common(classes, MAX_CLASSES), tuple(kinds))


def _common(counts: Counter[str], most: int) -> tuple[str, ...]:
    kept = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:most]
    return tuple(sorted(name for name, _ in kept))
