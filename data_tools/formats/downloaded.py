"""Pairs of URL and caption with a folder of downloaded pictures: which file belongs to which row, for Conceptual Captions, SBU and tables.

Downloaders name files by the URL or by the number of the row. A name made from the URL cannot belong to another row, so ``auto`` tries
those on the first rows and says which it took. Row numbers could be off by one without anyone noticing, so they must be asked for.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
import urllib.parse
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import Record, Skip, captioned
from mmpretrain.data_tools.formats.common import Pictures, add_images

MAX_MISSING = "100%"  # a good part of the web is always gone
_TRIED = 1000  # rows on which ``auto`` tries the rules
_WIDTHS = (1, 5, 6, 7, 8, 9, 10, 12)
T = TypeVar("T")


class Row(NamedTuple):
    """One row of a list of URLs."""

    number: int  # from 0, as downloaders count
    url: str  # or the name of a file, with the rule ``path``
    caption: str
    meta: dict[str, Any] = {}


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # as they lie in the file


def _hashed(algorithm: str) -> Callable[[Row], list[str]]:
    return lambda row: [hashlib.new(algorithm, _bytes(row.url), usedforsecurity=False).hexdigest()]


def _basename(row: Row) -> list[str]:
    try:
        path = urllib.parse.urlsplit(row.url).path
    except ValueError:  # brackets that hold no address
        return []
    name = PurePosixPath(urllib.parse.unquote(path)).name
    return [name] if name else []


def _number(first: int) -> Callable[[Row], list[str]]:
    def names(row: Row) -> list[str]:
        padded = [f"{row.number + first:0{width}d}" for width in _WIDTHS]
        return padded + [f"{name[:4]}/{name}" for name in padded]

    return names


def _path(row: Row) -> list[str]:
    name = PurePosixPath(row.url).name
    return [row.url, name, f"{name[:4]}/{name}"]


RULES: dict[str, Callable[[Row], list[str]]] = {
    "row-crc32": lambda row: [f"{row.number}_{zlib.crc32(_bytes(row.url))}"],  # of DownloadConceptualCaptions
    "md5": _hashed("md5"),
    "sha1": _hashed("sha1"),
    "sha256": _hashed("sha256"),
    "basename": _basename,
    "row0": _number(0),
    "row1": _number(1),
    "path": _path,
}
AUTO = ("row-crc32", "md5", "sha1", "sha256", "basename")


def add_options(parser: Any) -> None:
    """``--images`` and ``--names``."""
    add_images(parser)
    add_names(parser)


def add_names(parser: Any) -> None:
    """``--names``: which file belongs to which URL."""
    parser.add_argument(
        "--names",
        choices=("auto", *(rule for rule in RULES if rule != "path")),
        default="auto",
        help="how downloaded files are named: by the URL (auto finds out which), or by the row counted from 0 or 1 (row0, row1)",
    )


def records(prefix: str, rows: Callable[[], Iterator[Row | Skip]], pictures: Pictures, rule: str) -> Iterator[Record | Skip]:
    """A sample for each URL, with the captions of all its rows.

    Args:
        prefix: of the keys.
        rows: gives the rows, from the start at every call.
        pictures: where to look.
        rule: of :data:`RULES`, or ``auto``.

    Raises:
        DataError: ``auto`` finds no file by any rule.
    """
    if rule == "auto":
        rule = _guess(rows, pictures)
    unsure = _shared_names(rows) if rule == "basename" else set()
    for group in together(rows, lambda row: row.url):
        if isinstance(group, Skip):
            yield group
            continue
        first = group[0]
        key = f"{prefix}-{first.number:09d}"
        names = [name for row in group for name in RULES[rule](row)]
        if unsure.intersection(names):
            yield Skip(key, "several URLs end in this name", first.url)
            continue
        found = pictures.find(*names, extensions=True)
        known = {"url": first.url} if rule != "path" else {"file_name": first.url}
        said = [(row.caption, {"ids": row.number}) for row in group]
        yield captioned(key, [found], said, {"id": first.number, "image_id": first.number, **known, **first.meta}, first.url)


def _guess(rows: Callable[[], Iterator[Row | Skip]], pictures: Pictures) -> str:
    first = [row for row in itertools.islice(rows(), _TRIED) if isinstance(row, Row)]
    hits = {rule: sum(pictures.find(*RULES[rule](row), extensions=True) is not None for row in first) for rule in AUTO}
    best = max(AUTO, key=lambda rule: hits[rule])
    if not hits[best]:
        example = f" (such as {RULES['md5'](first[0])[0]}.jpg or {RULES['row-crc32'](first[0])[0]})" if first else ""
        raise DataError(
            f"{pictures.folders[0]}: no file is named by the URL of one of the first {len(first)} rows{example}; name the folder that "
            "holds the files themselves, or say how they are named with --names"
        )
    print(f"mmpretrain: files are named by {best} ({hits[best]} of the first {len(first)} rows are there)", file=sys.stderr)
    return best


def _shared_names(rows: Callable[[], Iterator[Row | Skip]]) -> set[str]:
    """Last parts that different URLs have in common: whose picture such a file is nobody knows."""
    owner: dict[str, bytes] = {}
    shared = set()
    for row in rows():
        if isinstance(row, Skip):
            continue
        for name in _basename(row):
            url = hashlib.blake2b(_bytes(row.url), digest_size=8).digest()
            if owner.setdefault(name, url) != url:
                shared.add(name)
    return shared


def together(rows: Callable[[], Iterator[T | Skip]], name: Callable[[T], str]) -> Iterator[list[T] | Skip]:
    """Rows of one name as one list, where the first of them stands. Only rows that have a twin are held in memory.

    Args:
        rows: gives the rows, from the start at every call.
        name: of a row.
    """
    hashes = array("Q", (_hash(name(row)) for row in rows() if not isinstance(row, Skip)))
    found, counts = np.unique(np.frombuffer(hashes, dtype=np.uint64), return_counts=True)
    twins = set(found[counts > 1].tolist())
    groups: dict[str, list[T]] = {}
    if twins:
        for row in rows():
            if not isinstance(row, Skip) and _hash(name(row)) in twins:
                groups.setdefault(name(row), []).append(row)
    for row in rows():
        if isinstance(row, Skip):
            yield row
        elif _hash(name(row)) not in twins:
            yield [row]
        elif group := groups.pop(name(row), None):
            yield group


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
