"""A folder of pictures with texts of the same name beside them: ``NAME.jpg``, ``NAME.txt``, ``NAME.json``; sub-folders too."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import Place, Record, Skip, captioned, clean_key
from mmpretrain.data_tools.formats.common import EXTENSIONS


def add_options(parser: Any) -> None:
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="the folder")
    parser.add_argument("--caption-per-line", action="store_true", help="each line of a .txt is a caption (default: the file is one)")
    parser.add_argument("--pictures-only", action="store_true", help="pictures without a text are samples too")


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each picture, in the order of their paths."""
    yield from walk(options.source, options.caption_per_line, options.pictures_only)


def walk(folder: Path, per_line: bool = False, pictures_only: bool = False) -> Iterator[Record | Skip]:
    """The samples of a folder and its sub-folders.

    Args:
        folder: to walk.
        per_line: each line of a ``.txt`` is a caption of its own.
        pictures_only: a picture without text is a sample, not left out.

    Raises:
        DataError: the folder does not exist or holds no picture.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    seen = False
    for place, folders, names in os.walk(folder.absolute()):
        folders.sort()
        files: dict[str, list[str]] = {}
        for name in sorted(names):
            if not name.startswith("."):
                files.setdefault(os.path.splitext(name)[0], []).append(os.path.join(place, name))
        for stem, paths in files.items():
            found = {os.path.splitext(path)[1].lower(): path for path in paths}
            pictures = [path for path in paths if path.lower().endswith(EXTENSIONS)]
            if not pictures:
                continue
            seen = True
            name = os.path.relpath(os.path.join(place, stem), folder.absolute())
            if len(pictures) > 1:
                yield Skip(name, "two pictures of one name", ", ".join(os.path.basename(path) for path in pictures))
                continue
            yield _record(name, pictures[0], found, per_line, pictures_only)
    if not seen:
        raise DataError(f"{folder}: no picture in it ({', '.join(EXTENSIONS)})")


def _record(name: str, picture: str, files: Mapping[str, str], per_line: bool, pictures_only: bool) -> Record | Skip:
    try:
        text = Path(files[".txt"]).read_text(encoding="utf-8-sig") if ".txt" in files else None
        found = json.loads(Path(files[".json"]).read_text(encoding="utf-8-sig")) if ".json" in files else {}
    except (ValueError, RecursionError) as error:
        return Skip(name, "text beside the picture cannot be read", str(error))
    texts = text.splitlines() if per_line and text is not None else [text]
    return described(name, picture, found, texts, pictures_only)


def described(name: str, picture: Place, found: Any, texts: list[str | None], pictures_only: bool = False) -> Record | Skip:
    """A record of a picture with the JSON object and the text beside it.

    Captions are ``captions`` or ``caption`` of the object, else the text. A text beside an object with ``statement`` or ``statements`` is
    never taken for a caption.
    """
    if not isinstance(found, dict):
        return Skip(name, "JSON beside the picture is not an object")
    listed = found.get("captions", found.get("caption"))
    listed = [listed] if isinstance(listed, str) else listed
    labelled = "statement" in found or "statements" in found
    said = listed if isinstance(listed, list) else [] if labelled else texts
    meta = {"id": name, **{key: value for key, value in found.items() if key not in ("caption", "captions") and value is not None}}
    if not any(isinstance(text, str) and text.strip() for text in said) and (labelled or pictures_only):
        return Record(clean_key(name), (picture,), (), meta)
    return captioned(clean_key(name), [picture], [(text, {}) for text in said], meta)
