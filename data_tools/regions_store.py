"""Regions from a store of old features: records found by key, boxes brought to the picture that lies in the shard."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.index import open_index
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.regions_info import RegionsInfo
from mmpretrain.data_tools.regions_labels import NONE
from mmpretrain.data_tools.regions_shard import Job
from mmpretrain.data_tools.stores import MATCHES, VG_COLUMNS, Record, Store, matched, number_of, open_store
from mmpretrain.types import Regions

_ASPECT = 0.05  # by which height / width of picture and record may differ
_OUTSIDE = 0.05  # parts of a side that a box may stick out; it is clipped
_TRIED = 64  # keys that a hint looks at


@functools.lru_cache(maxsize=2)
def _opened(path: str, classes: tuple[str, ...] | None) -> Store:
    return open_store(Path(path), classes)


def maker(options: Mapping[str, Any]) -> StoreMaker:
    """The maker of ``options``: store (path), classes (names or None), places (sample key -> locations), background, widths."""
    classes = tuple(options["classes"]) if options["classes"] else None
    return StoreMaker(_opened(options["store"], classes), options["places"], options["background"], options["widths"])


class StoreMaker:
    """Implements ``regions_shard.Maker``.

    Args:
        store: where records lie.
        places: locations of the records of each sample, one for each of its pictures.
        background: the class that means none.
        widths: what every record has, see :func:`widths_of`.
    """

    def __init__(self, store: Store, places: Mapping[str, Sequence[Any]], background: int | None, widths: Mapping[str, int]) -> None:
        self.store, self.places, self.background, self.widths = store, places, background, widths

    def regions(self, jobs: Sequence[Job]) -> list[Regions | None]:
        return [self._one(job) for job in jobs]

    def _one(self, job: Job) -> Regions | None:
        places = self.places.get(job.sample.key)
        if places is None or len(places) != len(job.sizes):
            return None
        parts, left = [], 0
        for place, (width, height) in zip(places, job.sizes):
            found = self.store.read(place)
            if (own := widths_of(found)) != self.widths:
                raise BadSample(f"the record has {own} values a region, the first one {self.widths}; it is damaged, or of another detector")
            parts.append(on_picture(found, height, width, left, self.background))
            left += width
        return joined(parts, job.image.height, job.image.width)


def widths_of(found: Record) -> dict[str, int]:
    """Values of a region in the arrays of a record that have several."""
    wide = {name: getattr(found, name) for name in ("features", "class_probs", "attribute_probs")}
    return {name: int(array.shape[1]) for name, array in wide.items() if array is not None}


def on_picture(found: Record, height: int, width: int, left: int = 0, background: int | None = None) -> Regions:
    """The regions of a record on a picture of this size, which may be a smaller copy of the one that the record was made of.

    Args:
        left: where the picture begins among several side by side.
        background: the column of class probabilities that means none of the classes, 0 or None.

    Raises:
        BadSample: the picture has another shape than the record's, or a box lies outside.
    """
    if found.normalised or found.size is None:
        scale = (width, height) if found.normalised else (1.0, 1.0)
    else:
        h, w = found.size
        if min(h, w) < 1 or abs(np.log((height / width) / (h / w))) > _ASPECT:
            raise BadSample(
                f"the record is of a picture of {h} x {w} (height x width), the shard's has {height} x {width}; is --match right?"
            )
        scale = (width / w, height / h)
    boxes = found.boxes.astype(np.float32) * np.array([*scale, *scale], dtype=np.float32)
    most = np.array([width, height, width, height], dtype=np.float32)
    if not np.isfinite(boxes).all() or (boxes < -_OUTSIDE * most).any() or (boxes > (1 + _OUTSIDE) * most).any():
        raise BadSample(f"a box lies outside the picture of {height} x {width} (height x width); is --match right?")
    boxes = np.clip(boxes, 0, most) + np.array([left, 0, left, 0], dtype=np.float32)
    probs = {name: getattr(found, name) for name in ("class_probs", "attribute_probs")}
    classes = found.classes
    if classes is None and probs["class_probs"] is not None:
        first = 0 if background is None else 1
        classes = probs["class_probs"][:, first:].argmax(1) + first
    elif background is not None and probs["class_probs"] is not None:
        classes = from_background(classes, probs["class_probs"])
    attributes = (
        found.attributes if found.attributes is not None or probs["attribute_probs"] is None else probs["attribute_probs"].argmax(1)
    )
    return Regions(
        found.features, boxes, np.array([height, width]), classes, probs["class_probs"], attributes, probs["attribute_probs"], found.scores
    )


def from_background(classes: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Numbers of classes as columns of their probabilities, of which the first is the background.

    LXMERT's extraction, and VOLTA's, number the classes without it beside probabilities that have it: the numbering that is more probable
    is the one meant.
    """
    if not len(classes) or not -1 <= classes.min() <= classes.max() < probs.shape[1] - 1:
        return classes
    named = classes >= 0
    rows, found = np.flatnonzero(named), classes[named]
    return np.where(named, classes + 1, -1) if probs[rows, found + 1].sum() > probs[rows, found].sum() else classes


def background_of(columns: int, names: Sequence[str] | None) -> int | None:
    """Which column of class probabilities means none of the classes: the first of bottom-up attention's 1601, or of one more than names."""
    if names is not None:
        return 0 if columns == len(names) + 1 else None
    return 0 if columns == VG_COLUMNS else None


def joined(parts: Sequence[Regions], height: int, width: int) -> Regions:
    """The regions of several pictures side by side as those of one; what only some of them have is left out."""
    if len(parts) == 1:
        return parts[0]
    columns = {name: [getattr(part, name) for part in parts] for name in Regions._fields}
    made = {name: np.concatenate(found) for name, found in columns.items() if all(one is not None for one in found)}
    return Regions(**{**made, "image_size": np.array([height, width])})


def info_of(store: Store, first: Record, made_by: str, classes: Sequence[str] | None, attributes: Sequence[str] | None) -> RegionsInfo:
    """What shards say of a store: two stores of one detector (``made_by``), width and names may be used together."""
    names, columns = tuple(classes or store.classes or ()), first.class_probs.shape[1] if first.class_probs is not None else None
    background = background_of(columns, names or None) if columns is not None else None
    if names and columns is not None and columns != len(names) + (background is not None):
        raise DataError(f"--classes has {len(names)} names, but the records have {columns} class probabilities")
    kinds, most = tuple(attributes or ()), first.attribute_probs.shape[1] if first.attribute_probs is not None else None
    if kinds and most is not None and most != len(kinds):
        if most != len(kinds) + 1:
            raise DataError(f"--attributes has {len(kinds)} names, but the records have {most} attribute probabilities")
        kinds = (NONE, *kinds)
    if background is not None and names:
        names = ("background", *names)
    width = int(first.features.shape[1])
    mark = json.dumps([made_by, width, columns, names, kinds])
    return RegionsInfo(
        kind="store",
        fingerprint=hashlib.sha256(mark.encode()).hexdigest(),
        width=width,
        source=f"{store.format} store of {made_by}",
        boxes="store",
        classes=names or None,
        background=background,
        attributes=kinds or None,
        options={"made_by": made_by},
    )


def places_of(path: Path, table: Mapping[str, str], locations: Mapping[str, Any], rule: str) -> dict[str, list[Any]]:
    """Sample key -> locations of the records of its pictures, for the samples of a shard that the store knows.

    Args:
        path: of the shard.
        table: name under the rule -> key of the store, of ``stores.matched``.
        locations: of the store.
        rule: ``key``, ``id`` (json.id) or ``number`` (digits at the end of both).
    """
    index = open_index(path)
    reader = ShardReader([path], [index]) if rule == "id" else None
    found = {}
    for sample in range(len(index)):
        key, count = index.key(sample), int(index.images_S[sample])
        meta = reader.read_at(0, sample, images=False).meta if reader is not None else {}
        name = _name(key, meta, rule)
        names = [name] if count == 1 else [f"{name}-img{number}" for number in range(count)]
        if count and name is not None and all(one in table for one in names):
            found[key] = [locations[table[one]] for one in names]
    return found


def _name(key: str, meta: Mapping[str, Any], rule: str) -> str | None:
    if rule == "id":
        return str(meta["id"]) if isinstance(meta.get("id"), str | int) else None
    last = key.rpartition("/")[2]
    return number_of(last) if rule == "number" else last


def hint(path: Path, keys: Sequence[str], rule: str) -> str:
    """Which other rules would find samples of a shard in the store, for the message that this one does not."""
    known = dict.fromkeys(keys)
    found = []
    for other in MATCHES:
        if other != rule:
            try:
                count = len(places_of(path, matched(known, other), known, other))
            except DataError:
                continue
            if count:
                found.append(f"--match {other} finds {count} of {path.name}")
    shown = ", ".join(repr(key) for key in list(known)[:2])
    return f"keys of the store are such as {shown or 'none'}; " + (" and ".join(found) or "no other --match finds them either")
