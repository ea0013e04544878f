"""The Arrow files that the scripts of ViLT (Kim et al. 2021) write: captions (COCO, Flickr30k, SBU, GCC, Visual Genome), VQA v2, NLVR2.

Pictures stay where they are until a shard is written: the files are mapped, never loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import Place, Record, Skip, captioned, clean_key
from mmpretrain.data_tools.formats.common import add_files
from mmpretrain.data_tools.formats.nlvr2 import LABELS

_ROWS = 1000  # of a batch turned into Python at a time


def add_options(parser: Any) -> None:
    add_files(parser, "--source", "coco_caption_karpathy_train.arrow, vg.arrow, vqav2_train.arrow, nlvr2_train.arrow and the like")


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each row, in the order of the files."""
    import pyarrow as pa

    for path in options.source:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: not an Arrow file ({error}); copy it again") from None
        make, pictures = _kind(path, reader.schema.names)
        others = [name for name in reader.schema.names if name not in pictures and not name.startswith("__")]
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            for start in range(0, batch.num_rows, _ROWS):
                for at, row in enumerate(batch.select(others).slice(start, _ROWS).to_pylist(), start):
                    places: list[Place] = [[str(path.absolute()), name, number, at] for name in pictures]
                    yield make(path.stem, row, places)


def _kind(path: Path, names: list[str]) -> tuple[Any, tuple[str, ...]]:
    """The function that reads a row, and the columns of pictures."""
    have = set(names)
    if {"image_0", "image_1", "questions", "answers", "identifier"} <= have:
        return _nlvr2, ("image_0", "image_1")
    if {"image", "questions", "image_id", "question_id"} <= have:
        return _vqa, ("image",)
    if {"image", "caption", "image_id"} <= have:
        return _captions, ("image",)
    raise DataError(f"{path}: its columns ({', '.join(names)}) are not those of a table of ViLT; for others use build table")


def _captions(source: str, row: Mapping[str, Any], places: list[Place]) -> Record | Skip:
    name = str(row["image_id"])
    said = [row["caption"]] if isinstance(row["caption"], str) else row["caption"] or []
    known: list[dict[str, Any]] = [{} for _ in said]
    if all(isinstance(row.get(side), list) for side in ("x", "y", "width", "height")):  # Visual Genome: a region for each caption
        boxes = zip(row["x"], row["y"], row["width"], row["height"], strict=True)
        known = [{"boxes": list(box)} for box in boxes]
    meta = {"id": name, "image_id": name, "source": source, **({"split": row["split"]} if row.get("split") else {})}
    return captioned(clean_key(f"{source}-{PurePosixPath(name).stem}"), places, zip(said, known, strict=True), meta)


def _vqa(source: str, row: Mapping[str, Any], places: list[Place]) -> Record:
    questions = []
    for at, (number, text) in enumerate(zip(row["question_id"], row["questions"], strict=True)):
        made = {"id": number, "question": text}
        if row.get("answers"):
            scores = dict(zip(row["answers"][at], row["answer_scores"][at], strict=True))
            made |= {"answer": max(scores, key=lambda answer: scores[answer], default=None), "answers": scores}
        questions.append(made)
    meta = {"id": row["image_id"], "image_id": row["image_id"], "source": source, "split": row.get("split"), "questions": questions}
    return Record(clean_key(f"{source}-{row['image_id']}"), tuple(places), (), meta)


def _nlvr2(source: str, row: Mapping[str, Any], places: list[Place]) -> Record:
    labels = [LABELS[str(label).lower()] for label in row["answers"]]
    statements = [{"text": text, "label": label} for text, label in zip(row["questions"], labels, strict=True)]
    meta = {"id": row["identifier"], "image_id": row["identifier"], "source": source, "statements": statements}
    return Record(clean_key(str(row["identifier"])), tuple(places), (), meta)
