"""``regions.json``: what made the ``KEY.regions.npz`` members of a folder of shards, and the check that no two makers are mixed.

The numbers of a feature vector, a class or an attribute mean something together with their extractor alone. So the file with the names
stands beside the shards, and whoever opens several folders calls :func:`same_extractor`; the data module calls :func:`check_readers` for
all that it reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mmpretrain.data import made_by
from mmpretrain.data.cache import write_atomic
from mmpretrain.data.errors import BadSample, DataError, named
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.regions import region_counts
from mmpretrain.data.units import Units
from mmpretrain.types import Spec

NAME = "regions.json"
VERSION = 1
_TRIED = 100  # samples of a set whose regions are looked at for their width


class Group(NamedTuple):
    """Attributes of one kind, of which a region has one: columns ``start`` to ``stop`` of ``attribute_probs``, which sum to 1."""

    name: str
    start: int
    stop: int


class Width(NamedTuple):
    """Values of a region's feature, and where that was seen."""

    values: int
    place: str  # shard and key


class RegionsInfo(NamedTuple):
    """What made the regions of a folder.

    ``fingerprint`` is that of the extractor: weights, names and everything that changes what a number means. ``boxes`` and ``options`` say
    how boxes were chosen; they may differ between folders that are used together.
    """

    kind: str  # extractor, detector, grid or store
    fingerprint: str  # sha256
    width: int  # of features
    source: str  # for people: architecture, or kind and name of the store
    boxes: str = ""  # annotated, proposals, detector, grid, store
    classes: tuple[str, ...] | None = None  # names of the columns of class_probs
    background: int | None = None  # the class that means none of them
    attributes: tuple[str, ...] | None = None
    groups: tuple[Group, ...] = ()  # empty: one group of all attributes
    random: bool = False  # of random weights: shapes are right, numbers mean nothing
    options: dict[str, Any] = {}
    measured: dict[str, Any] = {}  # held-out accuracy of the extractor, as it states it

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {"version": VERSION, **self._asdict(), "groups": [list(group) for group in self.groups]}

    @classmethod
    def from_json(cls, found: dict[str, Any], path: Path | str) -> RegionsInfo:
        """Inverse of :meth:`to_json`.

        Raises:
            DataError: naming ``path``: another version, or not what :meth:`to_json` writes.
        """
        try:
            if found["version"] != VERSION:
                raise DataError(f"{path}: version {found['version']} is not {VERSION}; it was written by another version of mmpretrain")
            rest: dict[str, Any] = {name: found[name] for name in cls._fields if name in found}
            groups = tuple(Group(str(name), int(start), int(stop)) for name, start, stop in rest.pop("groups", ()))
            for name in ("classes", "attributes"):
                rest[name] = tuple(map(str, rest.get(name) or ())) or None
            made = cls(**rest, groups=groups)
            if not isinstance(made.fingerprint, str) or not isinstance(made.width, int) or made.width < 1:
                raise TypeError("fingerprint or width")
            return made
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: it does not describe regions ({type(error).__name__}: {error}); make the shards again") from None


def read_info(folder: Path) -> RegionsInfo | None:
    """The ``regions.json`` of a folder, None where there is none.

    Raises:
        DataError: it cannot be read.
    """
    return made_by.read(folder / NAME, RegionsInfo.from_json)


def write_info(folder: Path, info: RegionsInfo) -> None:
    """Write the ``regions.json`` of a folder."""
    write_atomic(folder / NAME, (json.dumps(info.to_json(), indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def same_extractor(folders: Iterable[Path]) -> RegionsInfo | None:
    """The extractor of all folders that have regions; None where none has. Folders without ``regions.json`` are passed over.

    Raises:
        DataError: two folders of different extractors, naming both.
    """
    return _one((folder, read_info(folder)) for folder in dict.fromkeys(folders))


def check_readers(readers: Iterable[ShardReader]) -> RegionsInfo | None:
    """The extractor of all shards of these readers that hold regions, local or remote; None where none is known.

    Raises:
        DataError: shards of different extractors, naming their folders.
    """
    return _one(made_by.beside(readers, NAME, RegionsInfo.from_json, lambda index: bool(index.regions_S.any())))


def feature_width(sets: Iterable[Units]) -> Width | None:
    """Values of a region's feature in all sets that show regions, by the header of the first sample of each; None where none does.

    Raises:
        DataError: two sets differ, naming a sample of each.
    """
    first: Width | None = None
    for units in sets:
        found = _width(units) if units.reads_regions else None
        if found is not None and first is not None and found.values != first.values:
            raise DataError(
                f"{found.place}: its regions have {found.values} values, those of {first.place} have {first.values}; "
                "make the regions of all shards by one extractor (mmpretrain data regions)"
            )
        first = first or found
    return first


def check_model(spec: Spec | None, found: Width | None, pictures: bool = False) -> None:
    """That a model can take the regions that are shown.

    Args:
        found: the width of their features; None where none are shown.
        pictures: whether all of them are shown with their pictures.

    Raises:
        DataError: naming the option and, where it is a sample that does not fit, shard and key.
    """
    wanted = spec.feature_width if spec is not None else None
    if spec is None or wanted is None:
        return
    if found is None:
        show = "both" if spec.computes_features else "regions"
        raise DataError(f"data: the model takes regions (of {wanted} values), but none are read: set data.show={show}")
    if spec.computes_features:
        if not pictures:
            raise DataError("data: the model computes the features of regions from pixels, but no pictures are read: set data.show=both")
    elif wanted != found.values:
        raise DataError(
            f"{found.place}: the regions have {found.values} values, but the model takes {wanted}: set `features` of its embedder to "
            f"{found.values}, or make regions of {wanted} (mmpretrain data regions)"
        )


def _width(units: Units) -> Width | None:
    """That of the first usable sample whose regions can be read."""
    for number in range(min(units.samples, _TRIED)):
        shard, place = units.usable(number)
        try:
            sample = units.reader.read_at(shard, place, images=False, regions=True)
            return Width(region_counts(sample.regions or b"")[1], named(str(units.reader.paths[shard]), sample.key))
        except BadSample:
            continue
    return None


def _one(found: made_by.Found[RegionsInfo]) -> RegionsInfo | None:
    return made_by.one(found, "regions", "features of two extractors cannot be mixed", "mmpretrain data regions")
