"""RefCOCO, RefCOCO+ and RefCOCOg (Kazemzadeh et al. 2014, Yu et al. 2016, Mao et al. 2016): expressions that name one object of a picture.

The references were published as a pickle, ``refs(unc).p``. It is read by a machine of our own that knows plain containers, texts and
numbers and refuses everything else (``plain_pickle.py``); a JSON export of it is read too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools import plain_pickle
from mmpretrain.data_tools.build_records import MISSING, Record, Skip
from mmpretrain.data_tools.formats.coco import Instances
from mmpretrain.data_tools.formats.common import Pictures, add_files, add_images, grouped, load_json

_MOST = 1 << 30  # bytes of a pickle


def add_options(parser: Any) -> None:
    add_images(parser)
    parser.add_argument("--refs", type=Path, required=True, metavar="FILE", help="refs(unc).p and the like, or the same list as JSON")
    add_files(parser, "--instances", "instances.json beside it")
    parser.add_argument("--split", nargs="+", help="train, val, test, testA, testB (default: all)")


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each image with references of the chosen splits: all its objects, and ``references`` to them."""
    refs = [ref for ref in load_refs(options.refs) if not options.split or ref["split"] in options.split]
    if not refs:
        raise DataError(f"{options.refs}: no reference of split {' '.join(options.split or ())}")
    pictures, instances = Pictures(options.images), Instances(options.instances)
    for number, found in grouped(refs, "image_id").items():
        key, image = f"refcoco-{number:012d}", instances.images.get(number)
        if image is None:
            yield Skip(key, "image is not in the instances")
            continue
        picture = pictures.find(image["file_name"])
        if picture is None:
            yield Skip(key, MISSING, image["file_name"])
            continue
        objects = instances.of(number)["objects"]
        place = {one["id"]: at for at, one in enumerate(objects)}
        lost = [ref for ref in found if ref["ann_id"] not in place]
        for ref in lost:
            yield Skip(f"{key} ref {ref['ref_id']}", "object of a reference is not in the instances")
        references = [_reference(ref, place[ref["ann_id"]]) for ref in found if ref["ann_id"] in place]
        if references:
            about = {"id": number, "image_id": number, "file_name": image["file_name"]}
            size: dict[str, Any] = {name: image[name] for name in ("width", "height") if name in image}
            yield Record(key, (picture,), (), {**about, **size, "objects": objects, "references": references})


def _reference(ref: dict[str, Any], place: int) -> dict[str, Any]:
    texts = [{"id": one["sent_id"], "text": str(one.get("raw") or one["sent"]).strip()} for one in ref["sentences"]]
    return {"id": ref["ref_id"], "object": place, "split": ref["split"], "sentences": texts}


def load_refs(path: Path) -> list[dict[str, Any]]:
    """The list of references of a pickle or a JSON file.

    Raises:
        DataError: a pickle with more than plain values, or no such list.
    """
    if path.suffix == ".json":
        found = load_json(path, list)
    elif path.stat().st_size > _MOST:
        raise DataError(f"{path}: larger than any file of references; is it the right file?")
    else:
        # no unpickler: a machine of our own that knows plain values alone
        found = plain_pickle.loads(path.read_bytes(), str(path))
    need = {"ref_id", "ann_id", "image_id", "split", "sentences"}
    if not isinstance(found, list) or not all(isinstance(ref, dict) and need <= ref.keys() for ref in found):
        raise DataError(f"{path}: not a list of references with {', '.join(sorted(need))}; is it the right file?")
    return found
