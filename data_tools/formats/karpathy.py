"""Karpathy's splits (Karpathy and Fei-Fei 2015): ``dataset_coco.json``, ``dataset_flickr30k.json``, ``dataset_flickr8k.json``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import Record, Skip, captioned, clean_key
from mmpretrain.data_tools.formats.coco import Instances
from mmpretrain.data_tools.formats.common import Pictures, add_files, add_images, load_json, part

SPLITS = ("train", "restval", "val", "test")


def add_options(parser: Any) -> None:
    add_images(parser)
    add_files(parser, "--annotations", "dataset_coco.json and the like")
    help = "which samples (default: all); for COCO, train and restval are the usual training set"
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=list(SPLITS), help=help)
    add_files(parser, "--instances", "for COCO: instances_train2014.json instances_val2014.json", required=False)


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each image of the chosen splits, with all its captions."""
    pictures, boxes, chosen = Pictures(options.images), Instances(options.instances or ()), False
    for path in options.annotations:
        found = load_json(path)
        source = str(found.get("dataset") or "karpathy")
        for image in part(found, path, "images"):
            if image["split"] not in options.split:
                continue
            chosen = True
            yield _record(source, image, pictures, boxes)
    if not chosen:
        raise DataError(f"{options.annotations[0]}: no image of split {' '.join(options.split)}")
    boxes.check()


def _record(source: str, image: dict[str, Any], pictures: Pictures, boxes: Instances) -> Record | Skip:
    name, coco = image["filename"], image.get("cocoid")
    key = f"coco-{coco:012d}" if coco is not None else clean_key(f"{source}-{PurePosixPath(name).stem}")
    picture = pictures.find(f"{image['filepath']}/{name}", name) if image.get("filepath") else pictures.find(name)
    number = image["imgid"] if coco is None else coco
    meta = {"id": image["imgid"], "image_id": number, "split": image["split"], "file_name": name}
    if coco is not None:
        meta.update(boxes.of(coco))
    said = [(sentence.get("raw"), {"ids": sentence.get("sentid")}) for sentence in image["sentences"]]
    return captioned(key, [picture], said, meta, name)
