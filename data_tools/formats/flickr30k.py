"""Flickr30k and Flickr8k as published: ``results_20130124.token``, ``Flickr8k.token.txt``: ``NAME.jpg#0<TAB>caption``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import Record, Skip, captioned, clean_key
from mmpretrain.data_tools.formats.common import Pictures, add_files, add_images, lines


def add_options(parser: Any) -> None:
    add_images(parser)
    add_files(parser, "--captions", "results_20130124.token or Flickr8k.token.txt")
    parser.add_argument("--only", type=Path, metavar="FILE", help="names or ids of the pictures wanted, one a line (the files of splits)")


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each picture, with all its captions in the order of the file."""
    pictures = Pictures(options.images)
    only = {PurePosixPath(name.strip()).stem for _, name in lines(options.only)} if options.only else None
    captions: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for path in options.captions:
        for number, line in lines(path):
            name, tab, text = line.partition("\t")
            file, mark, _ = name.rpartition("#")
            if tab and mark:
                captions.setdefault(file.strip(), []).append((text, {"ids": name}))
            elif line.strip():
                yield Skip(f"{path.name}:{number}", "line is not NAME#N, tab, caption")
    chosen = False
    for name, said in captions.items():
        stem = PurePosixPath(name).stem
        if only is not None and stem not in only:
            continue
        chosen = True
        yield captioned(clean_key(f"flickr-{stem}"), [pictures.find(name)], said, {"id": stem, "image_id": stem, "file_name": name}, name)
    if not chosen:
        raise DataError(f"{options.captions[0]}: no caption of the pictures asked for; each line is NAME.jpg#N, a tab and a caption")
