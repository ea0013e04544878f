"""Visual Genome (Krishna et al. 2017): region descriptions as captions, objects, attributes and relationships as a scene graph, questions.

The files are those of its site (``image_data.json``, ``region_descriptions.json``, ``objects.json``, ``attributes.json``,
``relationships.json``, ``question_answers.json``), each optional but the first. Together they have some 3 GB; each is read one image at a
time and held packed, since their images need not stand in the same order.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import MISSING, Record, Skip, captioned
from mmpretrain.data_tools.formats.common import Pictures, add_images, load_json, stream

PARTS = {
    "region_descriptions.json": "regions",
    "objects.json": "objects",
    "attributes.json": "attributes",
    "relationships.json": "relationships",
    "question_answers.json": "qas",
}


def add_options(parser: Any) -> None:
    add_images(parser)
    what = f"folder with image_data.json and any of {', '.join(PARTS)}"
    parser.add_argument("--annotations", type=Path, required=True, metavar="DIR", help=what)
    parser.add_argument("--without", nargs="+", choices=tuple(PARTS.values()), default=[], help="parts not wanted though they are there")


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each image. Without ``region_descriptions.json`` samples have no captions."""
    pictures, folder = Pictures(options.images), options.annotations
    if not (folder / "image_data.json").is_file():
        raise DataError(f"{folder}: there is no image_data.json in it")
    there = {what: folder / name for name, what in PARTS.items() if (folder / name).is_file() and what not in options.without}
    found = {what: _packed(path, what) for what, path in there.items()}
    for image in load_json(folder / "image_data.json", list):
        number = image.get("image_id", image.get("id"))
        parts = {what: json.loads(zlib.decompress(rows[number])) for what, rows in found.items() if number in rows}
        yield _record(number, image, parts, pictures, "regions" in found)


def _packed(path: Path, what: str) -> dict[int, bytes]:
    """image -> packed JSON of its rows."""
    made = {}
    for _, image in stream(path):
        rows = image.get(what) if isinstance(image, dict) else None
        number = image.get("image_id", image.get("id")) if rows else None
        if rows and number is None:  # old files name the image in their rows
            number = rows[0].get("image_id")
        if rows is None or (rows and number is None):
            raise DataError(f"{path}: an element without an image id or without {what!r}; is it the right file?")
        if rows:
            made[number] = zlib.compress(json.dumps(rows).encode(), 1)
    return made


def _record(number: int, image: Mapping[str, Any], parts: Mapping[str, Any], pictures: Pictures, wants_captions: bool) -> Record | Skip:
    url = str(image.get("url") or "")
    folder, name = PurePosixPath(url).parts[-2:] if "/" in url else ("", f"{number}.jpg")
    picture = pictures.find(f"{folder}/{name}", name, f"{number}.jpg")
    meta: dict[str, Any] = {"id": number, "image_id": number}
    meta.update({key: image[key] for key in ("width", "height", "coco_id", "flickr_id", "url") if image.get(key) is not None})
    meta.update(_graph(parts))
    if "qas" in parts:
        meta["questions"] = [{"id": q["qa_id"], "question": q["question"], "answer": q["answer"]} for q in parts["qas"]]
    key = f"vg-{number}"
    if wants_captions:
        said = [
            (row.get("phrase"), {"ids": row.get("region_id", row.get("id")), "boxes": [row["x"], row["y"], row["width"], row["height"]]})
            for row in parts.get("regions", ())
        ]
        return captioned(key, [picture], said, meta, f"{number}.jpg")
    return Record(key, (picture,), (), meta) if picture else Skip(key, MISSING, f"{number}.jpg")


def _graph(parts: Mapping[str, Any]) -> dict[str, Any]:
    """``objects`` and ``triples``. An object that only an attribute or a relationship names is added."""
    if not any(what in parts for what in ("objects", "attributes", "relationships")):
        return {}
    objects: dict[int, dict[str, Any]] = {}
    for row in [*parts.get("objects", ()), *parts.get("attributes", ())]:
        made = objects.setdefault(row["object_id"], _object(row))
        if row.get("attributes"):
            made["attributes"] = list(dict.fromkeys([*made.get("attributes", ()), *(str(one).strip() for one in row["attributes"])]))
    triples = []
    for row in parts.get("relationships", ()):
        for end in (row["subject"], row["object"]):
            objects.setdefault(end["object_id"], _object(end))
        triples.append((row["subject"]["object_id"], row["predicate"].strip().lower(), row["object"]["object_id"]))
    place = {number: at for at, number in enumerate(objects)}
    return {"objects": list(objects.values()), "triples": [[place[s], relation, place[o]] for s, relation, o in triples]}


def _object(row: Mapping[str, Any]) -> dict[str, Any]:
    names = row.get("names") or ([row["name"]] if row.get("name") else [])
    made = {"name": names[0] if names else "", "box": [row["x"], row["y"], row["w"], row["h"]], "id": row["object_id"]}
    if len(names) > 1:
        made["names"] = names
    return {**made, "synsets": row["synsets"]} if row.get("synsets") else made
