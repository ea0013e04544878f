"""SBU Captions (Ordonez et al. 2011): ``sbu-captions-all.json``, or the two text files of the first publication."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import Record, Skip
from mmpretrain.data_tools.formats import downloaded
from mmpretrain.data_tools.formats.common import Pictures, lines, load_json, part
from mmpretrain.data_tools.formats.conceptual import pairs
from mmpretrain.data_tools.formats.downloaded import Row

MAX_MISSING = downloaded.MAX_MISSING


def add_options(parser: Any) -> None:
    downloaded.add_options(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--json", type=Path, metavar="FILE", help="sbu-captions-all.json")
    source.add_argument("--urls", type=Path, metavar="FILE", help="SBU_captioned_photo_dataset_urls.txt, with --captions")
    source.add_argument("--pairs", type=Path, metavar="FILE", help="JSON list of [file name, caption], as ViLT's annot.json")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="SBU_captioned_photo_dataset_captions.txt, line by line as --urls")


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each URL (or file) that is there."""
    if bool(options.urls) != bool(options.captions):
        raise DataError("build sbu: --urls and --captions go together")
    pictures = Pictures(options.images)
    if options.pairs:
        yield from downloaded.records("sbu", lambda: pairs(options.pairs), pictures, "path")
        return
    if options.json:
        found = load_json(options.json)
        columns = [part(found, options.json, name) for name in ("image_urls", "captions")]
        users = found.get("user_ids") or [None] * len(columns[0])
        if not len(columns[0]) == len(columns[1]) == len(users):
            raise DataError(f"{options.json}: image_urls, captions and user_ids are not equally many")
        rows = [
            Row(number, url, caption, {} if user is None else {"user_id": user})
            for number, (url, caption, user) in enumerate(zip(*columns, users, strict=True))
        ]
        yield from downloaded.records("sbu", lambda: iter(rows), pictures, options.names)
    else:
        yield from downloaded.records("sbu", lambda: _beside(options.urls, options.captions), pictures, options.names)


def _beside(urls: Path, captions: Path) -> Iterator[Row]:
    for number, (url, caption) in enumerate(itertools.zip_longest(lines(urls), lines(captions))):
        if url is None or caption is None:
            raise DataError(f"{urls} and {captions} have different numbers of lines ({number} in the shorter); are both whole?")
        yield Row(number, url[1].strip(), caption[1])
