"""Conceptual Captions 3M (Sharma et al. 2018: caption, tab, URL) and 12M (Changpinyo et al. 2021: URL, tab, caption)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import Record, Skip
from mmpretrain.data_tools.formats import downloaded
from mmpretrain.data_tools.formats.common import Pictures, lines, load_json
from mmpretrain.data_tools.formats.downloaded import Row

MAX_MISSING = downloaded.MAX_MISSING


def add_options(parser: Any) -> None:
    downloaded.add_options(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tsv", type=Path, metavar="FILE", help="Train_GCC-training.tsv, cc12m.tsv or the like, also .gz")
    source.add_argument("--pairs", type=Path, metavar="FILE", help="JSON list of [file name, caption], as ViLT's train_annot.json")


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each URL (or file) that is there."""
    pictures = Pictures(options.images)
    if options.pairs:
        yield from downloaded.records("cc", lambda: pairs(options.pairs), pictures, "path")
    else:
        yield from downloaded.records("cc", lambda: _rows(options.tsv), pictures, options.names)


def _rows(path: Path) -> Iterator[Row | Skip]:
    """Rows of two columns, of which one is a URL; a first line without any is a header and not counted as a row."""
    header = 0
    for number, line in lines(path):
        cells = line.split("\t")
        urls = [at for at, cell in enumerate(cells[:2]) if cell.strip().startswith(("http://", "https://"))]
        if len(urls) == 1 and len(cells) >= 2:
            yield Row(number - 1 - header, cells[urls[0]].strip(), cells[1 - urls[0]])
        elif number == 1 and not urls:
            header = 1
        elif line.strip():
            yield Skip(f"{path.name}:{number}", "line is not a caption and a URL with a tab between them")


def pairs(path: Path) -> Iterator[Row | Skip]:
    """Rows of a JSON list of [file name, caption].

    Raises:
        DataError: another list.
    """
    for number, pair in enumerate(load_json(path, list)):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(cell, str) for cell in pair):
            raise DataError(f"{path}: element {number} is not [file name, caption]")
        yield Row(number, pair[0], pair[1])
