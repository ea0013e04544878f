"""VinVL's files: ``features.tsv`` (key and base64 features, as JSON or in a column of its own) with a label file and ``.lineidx`` files.

The last six values of a feature are its place, as parts of width and height: x1, y1, x2, y2, w, h. They become the box where the labels
have no ``rect``, and are taken off the features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data_tools.stores import Record, unbase64
from mmpretrain.data_tools.stores_tsv import first_column, line_at, lines, unique

FEATURES = ("features.tsv", "feature.tsv")
LABELS = ("predictions.tsv", "labels.tsv", "label.tsv", "predictions_gt.tsv")
_PLACE = 6
_NEAR = 0.01  # parts of a side by which the place may contradict itself (float16 and rounding)


def features_file(path: Path) -> Path | None:
    """The features of a folder, or ``path`` itself where it is a .tsv; None else."""
    if path.is_file():
        return path if path.suffix == ".tsv" else None
    found = (
        [path / name for name in FEATURES if (path / name).is_file()]
        or sorted(path.glob("*.features.tsv"))
        or sorted(path.glob("*.feature.tsv"))
    )
    return found[0] if found else None


def labels_file(features: Path) -> Path | None:
    """The label file that belongs to a feature file."""
    stem = features.name.removesuffix("features.tsv").removesuffix("feature.tsv")
    return next((features.with_name(stem + name) for name in LABELS if features.with_name(stem + name).is_file()), None)


def _places(path: Path) -> Iterator[tuple[int, str]]:
    """(offset, key) of each line: by the ``.lineidx`` where there is one, else by reading the file through."""
    index = path.with_suffix(".lineidx")
    if not index.is_file():
        yield from lines(path)
        return
    with open(path, "rb") as file, open(index, encoding="ascii", errors="replace") as offsets:
        for text in offsets:
            if not text.strip().isdigit():
                raise DataError(f"{index}: {text.strip()[:40]!r} is no offset; delete the file, it is not needed")
            at = int(text)
            file.seek(max(at - 1, 0))
            head = file.read(1025)
            if at and head[:1] != b"\n":
                raise DataError(f"{index}: no line of {path.name} begins at {at}; delete the index, it is not needed")
            yield at, first_column(head[1:] if at else head, path, at)


class VinvlStore:
    """Implements ``stores.Store``; a location is [offset of the features, offset of the labels or None].

    Args:
        path: the feature file.
        classes: names of classes; None: those that the labels use, in alphabetical order.
    """

    format = "vinvl"

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        self.path, self.labels = path, labels_file(path)
        self._features = open(path, "rb")
        self._labels = open(self.labels, "rb") if self.labels else None
        self._label_places: dict[str, int] | None = None
        self.classes = tuple(classes) if classes else self._used() if self.labels else None
        self._numbers = {name: number for number, name in enumerate(self.classes or ())}

    def __del__(self) -> None:
        for file in (getattr(self, "_features", None), getattr(self, "_labels", None)):
            if file is not None:
                file.close()

    def _used(self) -> tuple[str, ...]:
        self._label_places = unique(_places(self.labels))
        names: set[str] = set()
        for at in self._label_places.values():
            names.update(one["class"] for one in self._objects(at)[0] if "class" in one)
        return tuple(sorted(names)) or None

    def locations(self) -> dict[str, Any]:
        features = unique(_places(self.path))
        if self.labels is None:
            return {key: [at, None] for key, at in features.items()}
        labels = self._label_places or unique(_places(self.labels))
        return {key: [at, labels.get(key)] for key, at in features.items()}

    def _objects(self, at: int) -> tuple[list[dict[str, Any]], tuple[int, int] | None]:
        """Labelled objects of a record and the size of its image."""
        columns = line_at(self._labels, at)
        found = _json(columns[-1])
        objects = found.get("objects") if isinstance(found, dict) else found
        if not isinstance(objects, list) or not all(isinstance(one, dict) for one in objects):
            raise BadSample("its labels are no list of objects")
        sides = (found.get("image_h"), found.get("image_w")) if isinstance(found, dict) else (None, None)
        return objects, (int(sides[0]), int(sides[1])) if all(isinstance(side, int | float) for side in sides) else None

    def read(self, location: Any) -> Record:
        columns = line_at(self._features, int(location[0]))
        count, text = _features_of(columns)
        values = unbase64(text, "<f4")
        if count < 1 or len(values) % count:
            raise BadSample(f"{len(values)} values are no {count} features")
        features = values.reshape(count, -1)
        place = _place(features)
        objects, size = self._objects(int(location[1])) if location[1] is not None else ([], None)
        if objects and len(objects) != count:
            raise BadSample(f"{count} features, but {len(objects)} labelled objects")
        rects = [one.get("rect") for one in objects]
        boxes = np.asarray(rects, dtype=np.float32) if rects and all(_is_rect(rect) for rect in rects) else None
        if boxes is None and place is None:
            raise BadSample("there are no boxes: labels without rect, and features that do not end in x1 y1 x2 y2 w h")
        names, scores = [one.get("class") for one in objects], [one.get("conf") for one in objects]
        unknown = next((name for name in names if name is not None and name not in self._numbers), None)
        if unknown is not None:
            raise BadSample(f"class {unknown!r} is not among the {len(self._numbers)} names of --classes")
        return Record(
            features=features[:, :-_PLACE] if place is not None else features,
            boxes=boxes if boxes is not None else place,
            normalised=boxes is None,
            size=size,
            classes=np.array([self._numbers.get(name, -1) for name in names]) if names else None,
            scores=np.asarray(scores, dtype=np.float32) if scores and all(isinstance(s, int | float) for s in scores) else None,
        )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSample(f"a column is no JSON ({error})") from None


def _features_of(columns: list[str]) -> tuple[int, str]:
    if len(columns) == 3:
        found: Any = {"num_boxes": int(columns[1]) if columns[1].isdigit() else None, "features": columns[2]}
    else:
        found = _json(columns[-1])
    if not isinstance(found, dict) or not isinstance(found.get("num_boxes"), int) or not isinstance(found.get("features"), str):
        raise BadSample("the features are neither JSON with num_boxes and features nor three columns")
    return found["num_boxes"], found["features"]


def _is_rect(rect: Any) -> bool:
    return isinstance(rect, list) and len(rect) == 4 and all(isinstance(side, int | float) for side in rect)


def _place(features: np.ndarray) -> np.ndarray | None:
    """The boxes at the end of features, where the last six columns are that: w = x2 - x1, h = y2 - y1, all from 0 to 1."""
    if features.shape[1] <= _PLACE:
        return None
    last = features[:, -_PLACE:]
    fits = np.abs(last[:, 2:4] - last[:, :2] - last[:, 4:]).max() <= _NEAR if len(last) else False
    return last[:, :4] if fits and last.min() >= -_NEAR and last.max() <= 1 + _NEAR else None
