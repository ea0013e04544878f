"""Tables: CSV, TSV, JSON (lines or one list) or Parquet, with the names of the columns given. Pictures are files, URLs of downloaded
files, or cells."""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import Place, Record, Skip, captioned, clean_key
from mmpretrain.data_tools.formats import downloaded
from mmpretrain.data_tools.formats.common import Pictures, add_files, lines, stream, text_file
from mmpretrain.data_tools.formats.downloaded import Row, together

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


def add_options(parser: Any) -> None:
    add_files(parser, "--source", ".csv, .tsv, .jsonl, .json (also .gz) or .parquet; columns are named in the first line of a CSV")
    picture = parser.add_mutually_exclusive_group(required=True)
    picture.add_argument("--image", metavar="COLUMN", help="path of the picture, under --images or beside the table")
    picture.add_argument("--url", metavar="COLUMN", help="URL of a picture that lies in --images (see --names)")
    picture.add_argument("--bytes", metavar="COLUMN", help="the picture itself, in Parquet; image.bytes is a field of a struct")
    parser.add_argument("--caption", nargs="+", required=True, metavar="COLUMN", help="one or more columns; a list is several captions")
    parser.add_argument("--id", metavar="COLUMN", help="names the samples (default: the row)")
    parser.add_argument("--images", type=Path, nargs="+", metavar="DIR", help="folders of the pictures")
    downloaded.add_names(parser)
    parser.add_argument("--delimiter", help="between the columns of a CSV (default: by the suffix of the file)")


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each picture; rows with one path or URL go together. All other columns of its first row are kept."""
    if options.url:
        if not options.images:
            raise DataError("build table: --url needs --images, the folder where the downloaded pictures lie")
        yield from downloaded.records("row", lambda: _url_rows(options), Pictures(options.images), options.names)
        return
    if options.bytes and not all(path.suffix == ".parquet" for path in options.source):
        raise DataError("build table: --bytes is for Parquet; other tables name files")
    pictures = Pictures(options.images) if options.images else None
    column = options.bytes or options.image
    if options.bytes:
        for row in _rows(options):
            yield row if isinstance(row, Skip) else _record([row], row["cell"], options)
        return
    for group in together(lambda: _rows(options), lambda row: str(row["values"].get(column))):
        if isinstance(group, Skip):
            yield group
            continue
        name = group[0]["values"].get(column)
        if not isinstance(name, str) or not name:
            yield from (Skip(row["name"], "row has no picture") for row in group)
            continue
        beside = (group[0]["path"].absolute().parent / name).as_posix()
        yield _record(group, pictures.find(name) if pictures else beside, options, name)


def _record(rows: list[dict[str, Any]], place: Place | None, options: argparse.Namespace, absent: str = "") -> Record | Skip:
    first = rows[0]
    said = [(text, {"ids": row["number"]}) for row in rows for text in _captions(row["values"], options.caption)]
    used = {*options.caption, (options.bytes or options.image).partition(".")[0]}
    number = first["values"].get(options.id) if options.id else first["number"]
    if number is None or number == "":
        return Skip(first["name"], f"row has no {options.id}")
    key = clean_key(str(number)) if options.id else f"row-{number:09d}"
    kept = {name: value for name, value in first["values"].items() if name not in (*used, options.id) and value is not None}
    source = {"file_name": absent} if absent else {}
    return captioned(key, [place], said, {"id": number, "image_id": number, **source, **kept}, absent)


def _captions(values: dict[str, Any], columns: list[str]) -> list[Any]:
    found = [values.get(column) for column in columns]
    return [text for one in found for text in (one if isinstance(one, list) else [one])]


def _url_rows(options: argparse.Namespace) -> Iterator[Row | Skip]:
    for row in _rows(options):
        if isinstance(row, Skip):
            yield row
            continue
        used = {*options.caption, options.url}
        kept = {name: value for name, value in row["values"].items() if name not in used and value is not None}
        url = row["values"].get(options.url)
        said = _captions(row["values"], options.caption)
        if not url or not said:
            yield Skip(row["name"], "no caption" if url else "row has no URL")
            continue
        for text in said:
            yield Row(row["number"], str(url), text or "", kept)


def _rows(options: argparse.Namespace) -> Iterator[dict[str, Any] | Skip]:
    """``{"number", "name", "path", "values", "cell"}`` of each row; numbers go on over the files."""
    number = 0
    for path in options.source:
        for at, row in enumerate(_read(path, options)):
            name = f"{path.name}:{at + 1}"
            if isinstance(row, Skip):
                yield row._replace(name=name)
            else:
                yield {"number": number, "name": name, "path": path, **row}
            number += 1


def _read(path: Path, options: argparse.Namespace) -> Iterator[dict[str, Any] | Skip]:
    plain = Path(path.name.removesuffix(".gz"))
    if plain.suffix == ".parquet":
        yield from _parquet(path, options)
    elif plain.suffix in (".jsonl", ".ndjson", ".json"):
        for found in _json(path):
            kept = isinstance(found, Skip)
            yield found if kept else {"values": _plain(found)} if isinstance(found, dict) else Skip("", "row is not a JSON object")
    else:
        yield from _csv(path, options.delimiter or _DELIMITERS.get(plain.suffix, ","), _wanted(options))


def _json(path: Path) -> Iterator[Any]:
    """The elements of a file that is one JSON list, else the value of each line."""
    with text_file(path) as file:
        if file.read(64).lstrip().startswith("["):
            yield from (value for _, value in stream(path))
            return
    for _, line in lines(path):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Skip("", "line is not JSON", str(error))


def _wanted(options: argparse.Namespace) -> list[str]:
    found = [options.image, options.url, *options.caption, options.id, options.bytes and options.bytes.partition(".")[0]]
    return [column for column in found if column]


def _missing(path: Path, have: list[str], wanted: list[str]) -> None:
    for column in wanted:
        if column not in have:
            raise DataError(f"{path}: there is no column {column!r}; it has {', '.join(have) or 'none'}")


def _csv(path: Path, delimiter: str, wanted: list[str]) -> Iterator[dict[str, Any] | Skip]:
    with text_file(path) as file:
        reader = csv.reader(file, delimiter=delimiter)
        try:
            first = next(reader, None)
            if not first:
                raise DataError(f"{path}: {'the file' if first is None else 'its first line'} is empty; the first line names the columns")
            header = [name.strip() for name in first]
            _missing(path, header, wanted)
            for cells in reader:
                if not cells:  # an empty line
                    continue
                if len(cells) == len(header):
                    yield {"values": dict(zip(header, cells, strict=True))}
                else:
                    yield Skip("", "row has another number of cells than the first line", f"{len(cells)}, not {len(header)}")
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: {error}; is the delimiter {delimiter!r}?") from None


def _parquet(path: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({error}); copy it again") from None
    names = table.schema_arrow.names
    _missing(path, names, _wanted(options))
    cells, _, child = (options.bytes or "").partition(".")
    if cells:
        _holds_bytes(path, table.schema_arrow.field(cells), child)
    for group in range(table.num_row_groups):
        try:
            found = table.read_row_group(group, columns=[name for name in names if name != cells])
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: row group {group} cannot be read ({error}); copy it again") from None
        for at, values in enumerate(found.to_pylist()):
            yield {"values": _plain(values), "cell": [str(path.absolute()), options.bytes, group, at]}


def _holds_bytes(path: Path, column: Any, child: str) -> None:
    import pyarrow.types as kinds

    kind, name = column.type, column.name
    if kinds.is_struct(kind):
        inside = [field.name for field in kind]
        if child not in inside:
            raise DataError(f"{path}: column {name!r} is a struct of {', '.join(inside)}; name the field: --bytes {name}.{inside[0]}")
        kind, name = kind.field(child).type, f"{name}.{child}"
    if not any(is_kind(kind) for is_kind in (kinds.is_binary, kinds.is_large_binary, kinds.is_fixed_size_binary)):
        raise DataError(f"{path}: column {name!r} holds {kind}, not the bytes of pictures; for paths take --image, for addresses --url")


def _plain(value: Any) -> Any:
    """JSON types: times and decimals become text, bytes and NaN None."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
