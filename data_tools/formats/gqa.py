"""GQA (Hudson and Manning 2019): questions (a file, or the folder of files of the full set) and scene graphs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import MISSING, Record, Skip, clean_key
from mmpretrain.data_tools.formats.common import Pictures, add_files, add_images, stream

_TYPES = (("structural", "type"), ("semantic", "semantic"), ("detailed", "detailed"))


def add_options(parser: Any) -> None:
    add_images(parser)
    add_files(parser, "--questions", "train_balanced_questions.json, or the folder train_all_questions", required=False)
    add_files(parser, "--scene-graphs", "train_sceneGraphs.json", required=False)


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each image: its questions, its scene graph. Images with a graph and no question are samples too."""
    if not options.questions and not options.scene_graphs:
        raise DataError("build gqa: give --questions, --scene-graphs or both")
    pictures = Pictures(options.images)
    questions: dict[str, list[str]] = {}  # as JSON: the full set has 14 million
    for path in _files(options.questions or ()):
        for number, row in stream(path):
            if "imageId" not in row:
                raise DataError(f"{path}: question {number} has no imageId; is it the right file?")
            questions.setdefault(str(row["imageId"]), []).append(json.dumps(question(number, row)))
    graphs = {image: graph for path in options.scene_graphs or () for image, graph in stream(path)}
    for image in dict.fromkeys([*questions, *graphs]):
        key, picture = clean_key(f"gqa-{image}"), pictures.find(f"{image}.jpg")
        if picture is None:
            yield Skip(key, MISSING, f"{image}.jpg")
            continue
        meta: dict[str, Any] = {"id": image, "image_id": image}
        meta.update(scene(graphs[image]) if image in graphs else {})
        if image in questions:
            meta["questions"] = [json.loads(text) for text in questions[image]]
        yield Record(key, (picture,), (), meta)


def _files(paths: Any) -> list[Path]:
    return [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]


def question(number: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A question in the form of the scenes: ``type`` is the structural type, the others stand beside it."""
    made = {"id": number, "question": row["question"]}
    made.update({ours: row[theirs] for theirs, ours in (("answer", "answer"), ("fullAnswer", "full_answer")) if row.get(theirs)})
    types = row.get("types") or {}
    made.update({ours: types[theirs] for theirs, ours in _TYPES if types.get(theirs)})
    return {**made, "balanced": bool(row["isBalanced"])} if "isBalanced" in row else made


def scene(graph: Mapping[str, Any]) -> dict[str, Any]:
    """``objects``, ``triples`` and what is said of the whole picture."""
    place = {number: at for at, number in enumerate(graph.get("objects") or {})}
    objects, triples = [], []
    for number, row in (graph.get("objects") or {}).items():
        made = {"name": row["name"], "box": [row["x"], row["y"], row["w"], row["h"]], "id": number}
        objects.append({**made, "attributes": row["attributes"]} if row.get("attributes") else made)
        relations = row.get("relations") or ()  # a list; the documentation shows an object
        relations = relations.values() if isinstance(relations, Mapping) else relations
        triples += [[place[number], one["name"], place[one["object"]]] for one in relations if one["object"] in place]
    about = {name: graph[name] for name in ("width", "height", "location", "weather") if graph.get(name) is not None}
    return {**about, "objects": objects, "triples": triples}
