"""COCO captions and instances (Lin et al. 2014, Chen et al. 2015): ``captions_*.json`` and ``instances_*.json``, 2014 and 2017."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import MISSING, Record, Skip, captioned, clean_key
from mmpretrain.data_tools.formats.common import Pictures, add_files, add_images, grouped, load_json, part

_KEPT = ("width", "height", "license", "flickr_url", "coco_url", "date_captured")


def add_options(parser: Any) -> None:
    add_images(parser)
    add_files(parser, "--captions", "captions_train2017.json and the like", required=False)
    add_files(parser, "--instances", "instances_train2017.json and the like: boxes and classes", required=False)
    parser.add_argument("--segmentation", action="store_true", help="keep the outlines of the instances (large)")


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each image: all its captions, all its instances. With captions, an image without any is left out."""
    if not options.captions and not options.instances:
        raise DataError("build coco: give --captions, --instances or both")
    pictures = Pictures(options.images)
    images: dict[int, dict[str, Any]] = {}
    captions: dict[int, list[dict[str, Any]]] = {}
    for path in options.captions or ():
        found = load_json(path)
        images.update({image["id"]: image for image in part(found, path, "images")})
        for number, rows in grouped(part(found, path, "annotations"), "image_id").items():
            captions.setdefault(number, []).extend(rows)
    boxes = Instances(options.instances or (), options.segmentation)
    for number, image in (images or boxes.images).items():
        name = image["file_name"]
        meta = {"id": number, "image_id": number, "file_name": name, **{key: image[key] for key in _KEPT if key in image}}
        meta.update(boxes.of(number))
        key, picture = _key(number), pictures.find(name)
        if options.captions:
            said = [(row.get("caption"), {"ids": row.get("id")}) for row in captions.get(number, ())]
            yield captioned(key, [picture], said, meta, name)
        else:
            yield Record(key, (picture,), (), meta) if picture else Skip(key, MISSING, name)
    boxes.check()
    for number in captions:
        if number not in images:
            yield Skip(_key(number), "captions of an image that is not listed", f"image_id {number}")


def _key(number: Any) -> str:
    return f"coco-{number:012d}" if isinstance(number, int) else clean_key(f"coco-{number}")


class Instances:
    """Boxes and classes of images from ``instances_*.json``.

    Args:
        paths: files; none for no boxes.
        segmentation: keep the outlines.

    Raises:
        DataError: not such a file.
    """

    def __init__(self, paths: Sequence[Path], segmentation: bool = False) -> None:
        self.segmentation, self.paths, self.met = segmentation, paths, False  # met: one of the images that were asked for is known
        self.images: dict[int, dict[str, Any]] = {}
        self.rows: dict[int, list[dict[str, Any]]] = {}
        self.classes: dict[int, str] = {}
        for path in paths:
            found = load_json(path)
            self.images.update({image["id"]: image for image in part(found, path, "images")})
            self.classes.update({one["id"]: one["name"] for one in part(found, path, "categories")})
            for number, rows in grouped(part(found, path, "annotations"), "image_id").items():
                self.rows.setdefault(number, []).extend(rows)

    def of(self, image: int) -> dict[str, Any]:
        """``{"objects": [...]}`` of an image; empty without instance files."""
        self.met |= image in self.images
        return {"objects": [self._object(row) for row in self.rows.get(image, ())]} if self.paths else {}

    def check(self) -> None:
        """
        Raises:
            DataError: no image that was asked for is in the files, so that all would have no objects.
        """
        if self.paths and not self.met:
            raise DataError(f"{self.paths[0]}: lists none of the images; is it of another split?")

    def _object(self, row: Mapping[str, Any]) -> dict[str, Any]:
        made = {"name": self.classes.get(row["category_id"], ""), "box": row["bbox"], "id": row["id"], "category_id": row["category_id"]}
        if row.get("iscrowd"):
            made["crowd"] = True
        return {**made, "segmentation": row["segmentation"]} if self.segmentation and "segmentation" in row else made
