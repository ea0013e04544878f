"""NLVR2 (Suhr et al. 2019): one JSON object a line, a statement about two pictures and whether it is true."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from mmpretrain.data_tools.build_records import MISSING, Record, Skip, clean_key
from mmpretrain.data_tools.formats.common import Pictures, add_files, add_images, lines

LABELS = {"true": True, "false": False}
_KEPT = ("directory", "synset", "query", "left_url", "right_url")


def add_options(parser: Any) -> None:
    add_images(parser)
    add_files(parser, "--annotations", "train.json, dev.json, test1.json, test2.json")


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each pair of pictures with all statements about it. Its id is the identifier of a statement without the last number."""
    pictures = Pictures(options.images)
    pairs: dict[str, list[dict[str, Any]]] = {}
    for path in options.annotations:
        for number, line in lines(path):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                pair = row["identifier"].rpartition("-")[0]
                statement(row)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                yield Skip(f"{path.name}:{number}", "line is not an example of NLVR2", f"{type(error).__name__}: {error}")
                continue
            pairs.setdefault(pair, []).append(row)
    for pair, rows in pairs.items():
        first = rows[0]
        split, directory = pair.partition("-")[0], first.get("directory")
        places = [f"{directory}/", f"train/{directory}/", f"images/train/{directory}/"] if directory is not None else []
        places += ["", f"{split}/", f"images/{split}/"]
        names = [f"{pair}-img{side}.png" for side in (0, 1)]
        found = [pictures.find(*(place + name for place in places)) for name in names]
        key = clean_key(pair)
        if None in found:
            yield Skip(key, MISSING, names[found.index(None)])
            continue
        meta = {"id": pair, "image_id": pair, "split": split, "statements": [statement(row) for row in rows]}
        meta.update({name: first[name] for name in _KEPT if first.get(name) is not None})
        yield Record(key, tuple(one for one in found if one is not None), (), meta)


def statement(row: dict[str, Any]) -> dict[str, Any]:
    """``{"text", "label", "id"}`` and the writer, where known."""
    label = row["label"] if isinstance(row["label"], bool) else LABELS[str(row["label"]).lower()]
    made = {"text": row["sentence"], "label": label, "id": row["identifier"]}
    return {**made, "writer": row["writer"]} if row.get("writer") is not None else made
