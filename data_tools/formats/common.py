"""What several formats need: options, annotation files read with clear errors, pictures found in folders."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from mmpretrain.data.errors import DataError

_CHUNK = 1 << 20
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


def add_images(parser: Any, required: bool = True) -> None:
    """``--images``: the folders where pictures lie."""
    parser.add_argument("--images", type=Path, nargs="+", required=required, metavar="DIR", help="folders of the pictures")


def add_files(parser: Any, option: str, what: str, required: bool = True) -> None:
    """An option that names one or several annotation files."""
    parser.add_argument(option, type=Path, nargs="+", required=required, metavar="FILE", help=what)


class Pictures:
    """Finds pictures by name in one or several folders.

    Args:
        folders: to look in.

    Raises:
        DataError: a folder that does not exist.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise DataError(f"--images {folder}: there is no such folder")
        self.folders = [str(folder.absolute()) for folder in folders]
        self._last: tuple[int, int, str] = (0, 0, "")  # folder, which of the names, extension of the last one found

    def find(self, *names: str, extensions: bool = False) -> str | None:
        """The path of one of ``names`` (relative) that is a file, with ``extensions`` also with .jpg, .png, ... added; None where none is.

        Where several are, the one that lies as the last one found did, else the first in the order of folders, then names.
        """
        endings = ("", *EXTENSIONS) if extensions else ("",)
        tries = [(f, n, ending) for f in range(len(self.folders)) for n in range(len(names)) for ending in endings]
        for place in [self._last, *tries]:  # most lie like the one before: one look at the disk
            if place[1] < len(names) and place[2] in endings and _inside(names[place[1]]):
                path = Path(self.folders[place[0]], names[place[1]] + place[2])
                if _is_file(path):
                    self._last = place
                    return str(path)
        return None


def _inside(name: str) -> bool:
    """Whether a name from an annotation file stays inside its folder."""
    return not name.startswith("/") and ".." not in Path(name).parts


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


@contextlib.contextmanager
def text_file(path: Path) -> Iterator[IO[str]]:
    """A UTF-8 text file, also a gzipped one (``.gz``), without byte order mark. Bytes that are not UTF-8 become halves of surrogate pairs,
    which no shard takes: what holds one is left out and counted.

    Raises:
        DataError: a damaged ``.gz``.
    """
    opened: Any = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the compressed file is damaged ({error}); copy it again") from None


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a text file."""
    with text_file(path) as file:
        for number, line in enumerate(file, 1):
            yield number, line.rstrip("\r\n")


def load_json(path: Path, kind: type = dict) -> Any:
    """A JSON file.

    Raises:
        DataError: not JSON, or of another kind at its top.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            found = json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); copy or unpack it again") from None
    if not isinstance(found, kind):
        raise DataError(f"{path}: holds a {type(found).__name__} where this format has a {kind.__name__}; is it the right file?")
    return found


def part(found: Any, path: Path, name: str, kind: type = list) -> Any:
    """``found[name]`` of an annotation file.

    Raises:
        DataError: it is not there, or of another kind.
    """
    value = found.get(name) if isinstance(found, dict) else None
    if not isinstance(value, kind):
        keys = ", ".join(list(found)[:8]) if isinstance(found, dict) else type(found).__name__
        raise DataError(f"{path}: no {kind.__name__} {name!r} in it (it has {keys}); is it the right file?")
    return value


def stream(path: Path) -> Iterator[tuple[str, Any]]:
    """The elements of a JSON file whose top is a list or an object, one at a time: (key, value); the key of a list is its position.

    Raises:
        DataError: not JSON, or cut short.
    """
    decoder = json.JSONDecoder()
    with text_file(path) as file:
        text = file.read(_CHUNK).lstrip()
        if text[:1] not in ("[", "{"):
            raise DataError(f"{path}: neither a JSON list nor an object; is it the right file?")
        is_list, at, number = text[0] == "[", 1, 0
        while True:
            at = _skip(text, at, "," if number else "")
            if at < len(text) and text[at] == ("]" if is_list else "}"):
                return
            try:
                key, value, end = _element(decoder, text, at, is_list)
                if end >= len(text):
                    raise ValueError("perhaps not whole")
            except (ValueError, IndexError, RecursionError) as error:
                more = file.read(max(_CHUNK, len(text)))
                if not more:
                    raise DataError(f"{path}: not JSON near element {number}, or cut short ({error}); copy or unpack it again") from None
                text, at = text[at:] + more, 0
                continue
            yield (str(number) if is_list else key), value
            number, at = number + 1, end


def _skip(text: str, at: int, also: str) -> int:
    """The next place that is neither white space nor, once, ``also``."""
    while at < len(text) and (text[at].isspace() or text[at] == also):
        at += 1
    return at


def _element(decoder: json.JSONDecoder, text: str, at: int, is_list: bool) -> tuple[str, Any, int]:
    if is_list:
        value, end = decoder.raw_decode(text, at)
        return "", value, end
    key, end = decoder.raw_decode(text, at)
    end = _skip(text, end, ":")
    value, end = decoder.raw_decode(text, end)
    return key, value, end


def grouped(rows: Iterable[Any], name: str) -> dict[Any, list[Any]]:
    """Rows (dicts) by the value of a field, in the order of their first appearance."""
    found: dict[Any, list[Any]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found
