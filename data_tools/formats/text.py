"""Text alone (BookCorpus, Wikipedia and the like): samples of ``KEY.txt``, and ``KEY.json`` where the source says more than the text."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmpretrain.data.decode import MAX_TEXT
from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import NOT_UTF8, Record, Skip, clean_key, not_utf8
from mmpretrain.data_tools.formats.common import add_files, lines

UNITS = ("line", "paragraph", "file", "json")
_ENDS = ("\n", ". ", " ")  # where a text that is too long is cut, the best first


class Text(NamedTuple):
    """A text and where it comes from."""

    number: int  # of the line where it begins, from 1
    text: str
    meta: dict[str, Any] = {}


def add_options(parser: Any) -> None:
    add_files(parser, "--source", "text files, also .gz, or folders of .txt, .json and .jsonl files")
    unit = "what one text is: a line (default), lines up to an empty one, a file, or a JSON object in a line"
    parser.add_argument("--unit", choices=UNITS, default="line", help=unit)
    parser.add_argument("--field", default="text", help="of the JSON objects (default text); their other fields go to KEY.json")
    parser.add_argument("--join", type=int, default=0, metavar="BYTES", help="join neighbouring texts of a file up to so many bytes")
    longest = f"cut longer texts after a line, sentence or word (default {MAX_TEXT})"
    parser.add_argument("--max-bytes", type=int, default=MAX_TEXT, metavar="BYTES", help=longest)


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each text; the parts of a text that was cut have keys of their own."""
    if not 64 <= options.max_bytes <= MAX_TEXT or options.join > options.max_bytes:
        raise DataError(f"build text: --max-bytes must be 64 to {MAX_TEXT}, and --join not more")
    files = _files(options.source)
    root = os.path.commonpath([str(path.parent.absolute()) for path in files])
    for path in files:
        name = os.path.relpath(path.absolute(), root).removesuffix(".gz")
        stem = clean_key(os.path.splitext(name)[0])
        for found in _joined(_texts(path, options.unit, options.field), options.join):
            if isinstance(found, Skip):
                yield found._replace(name=f"{name}:{found.name}")
                continue
            parts = list(cut(found.text, options.max_bytes))
            for number, text in enumerate(parts):
                key = f"{stem}-{found.number:09d}" + (f"-{number:03d}" if len(parts) > 1 else "")
                yield Record(key, (), (text,), found.meta)


def _files(paths: list[Path]) -> list[Path]:
    """Files as named; those of a folder in the order of their paths."""
    endings = (".txt", ".json", ".jsonl", ".txt.gz", ".json.gz", ".jsonl.gz")
    found = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist; check the path")
        inside = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(endings)) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path}: no text file in it ({', '.join(endings)})")
        found += inside
    return found


def _texts(path: Path, unit: str, field: str) -> Iterator[Text | Skip]:
    if unit in ("paragraph", "file"):
        yield from _blocks(path, split=unit == "paragraph")
        return
    for number, line in lines(path):
        if not line.strip():
            continue
        if unit == "line":
            yield Text(number, line.strip())
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Skip(str(number), "line is not JSON", str(error))
            continue
        if not isinstance(found, dict) or not isinstance(found.get(field), str) or not found[field].strip():
            yield Skip(str(number), f"JSON without a text {field!r}")
            continue
        yield Text(number, found[field].strip(), {name: value for name, value in found.items() if name != field and value is not None})


def _blocks(path: Path, split: bool) -> Iterator[Text]:
    """Runs of lines up to an empty one, or the whole file."""
    held: list[str] = []
    first = 1
    for number, line in lines(path):
        if line.strip() or not split:
            first = first if held else number
            held.append(line.rstrip())
        elif held:
            yield Text(first, "\n".join(held).strip())
            held = []
    if text := "\n".join(held).strip():
        yield Text(first, text)


def _joined(texts: Iterator[Text | Skip], most: int) -> Iterator[Text | Skip]:
    """Neighbouring texts without further fields, one a line, up to ``most`` bytes."""
    held: list[Text] = []
    size = 0
    for found in texts:
        if isinstance(found, Text) and (broken := not_utf8(found.text)):
            found = Skip(str(found.number), NOT_UTF8, broken)
        length = 0 if isinstance(found, Skip) else len(found.text.encode()) + 1
        if held and (isinstance(found, Skip) or found.meta or size + length > most):
            yield Text(held[0].number, "\n".join(one.text for one in held))
            held, size = [], 0
        if isinstance(found, Skip) or found.meta or not most:
            yield found
        else:
            held.append(found)
            size += length
    if held:
        yield Text(held[0].number, "\n".join(one.text for one in held))


def cut(text: str, most: int) -> Iterator[str]:
    """Pieces of at most ``most`` bytes of UTF-8, cut after a line, else a sentence, else a word, else a character."""
    data = text.encode()
    while len(data) > most:
        piece = data[:most].decode("utf-8", "ignore")
        ends = (piece.rfind(end, len(piece) // 2) + len(end) for end in _ENDS if piece.rfind(end, len(piece) // 2) >= 0)
        piece = piece[: next(ends, len(piece))]
        yield piece.strip()
        data = data[len(piece.encode()) :].lstrip()
    if data:
        yield data.decode("utf-8")
