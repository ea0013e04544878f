"""What img2dataset wrote: ``output_format=webdataset`` (``00000.tar``: KEY.jpg, KEY.txt, KEY.json) or ``files`` (folders of the same).

Its shards can be trained on as they are. Building them anew checks every picture, leaves the bad out, and puts the caption where several
can stand.
"""

from __future__ import annotations

import argparse
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmpretrain.data import tar
from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import Record, Skip
from mmpretrain.data_tools.formats import downloaded, folder
from mmpretrain.data_tools.shards import split_name

MAX_MISSING = downloaded.MAX_MISSING
_PICTURES = ("jpg", "jpeg", "png", "webp")


def add_options(parser: Any) -> None:
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="the output folder of img2dataset")


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each picture, in the order of shards and keys."""
    if not options.source.is_dir():
        raise DataError(f"{options.source}: there is no such folder")
    shards = sorted(options.source.glob("*.tar"))
    if not shards:
        yield from folder.walk(options.source)
    for path in shards:
        try:
            yield from _samples(path)
        except DataError as error:  # samples before the damage have been taken
            yield Skip(path.name, "rest of a damaged shard", str(error))


def _samples(path: Path) -> Iterator[Record | Skip]:
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        key = ""
        group: dict[str, tar.Member] = {}
        for member in tar.members(data, str(path)):
            stem, extension = split_name(member.name.removeprefix("./"))
            if stem != key and group:
                yield _record(path, key, group, data)
                group = {}
            key, group[extension] = stem, member
        if group:
            yield _record(path, key, group, data)


def _record(path: Path, key: str, group: dict[str, tar.Member], data: mmap.mmap) -> Record | Skip:
    picture = next((group[name] for name in _PICTURES if name in group), None)
    if picture is None:
        return Skip(f"{path.name}:{key}", "no picture in the sample")
    texts = {name: data[m.offset : m.offset + m.size] for name, m in group.items() if name in ("txt", "json")}
    try:
        found = json.loads(texts.get("json", b"{}").decode("utf-8-sig"))
        text = texts["txt"].decode("utf-8-sig") if "txt" in texts else None
    except (ValueError, RecursionError) as error:
        return Skip(f"{path.name}:{key}", "text of the sample cannot be read", str(error))
    return folder.described(key, [str(path.absolute()), picture.offset, picture.size], found, [text])
