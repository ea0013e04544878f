"""``mmpretrain data build FORMAT``: shards from the files that people have.

First the annotations are read into a list of records on disk, then processes write the shards from it, each appearing whole. All happens
in ``.NAME.building`` beside the target, which is renamed at the end: the target is complete or not there. The same command after a kill
goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmpretrain.data.cache import locked, write_atomic
from mmpretrain.data.errors import DataError
from mmpretrain.data_tools import build_spool, engine
from mmpretrain.data_tools.build_pictures import CHECKS
from mmpretrain.data_tools.build_records import MISSING, Skip
from mmpretrain.data_tools.build_shards import chunks, whole, write
from mmpretrain.data_tools.common import megabytes, table
from mmpretrain.data_tools.formats import FORMATS
from mmpretrain.data_tools.shards import SHARD_SIZE, write_manifest

VERSION = 3  # of what stands in the shards: raise it when records or shards change for the same source
_WORK = ".work"  # in the folder of the build: the list of records and the results of finished shards
_ASIDE = ("out", "workers", "engine", "quiet", "max_missing")  # options that change nothing of the bytes
_SHOWN = 3  # names of left-out records for each reason


def main(args: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """Run the command; returns 0, or 1 where more was left out than ``--max-missing`` allows.

    Raises:
        DataError: annotations that are not of the format, two samples of one name, no sample at all.
        OSError: a file that does not exist or cannot be written.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = parser_class(prog="mmpretrain data build", description="Shards from a known format.", formatter_class=raw, epilog=_list())
    parser.add_argument("format", metavar="FORMAT", choices=tuple(FORMATS), help="one of those below; each has its own --help")
    name = parser.parse_args(args[:1] or ["--help"]).format
    format = importlib.import_module(f"mmpretrain.data_tools.formats.{FORMATS[name][0]}")
    parser = parser_class(prog=f"mmpretrain data build {name}", description=FORMATS[name][1])
    format.add_options(parser.add_argument_group("source"))
    _add_common(parser, getattr(format, "MAX_MISSING", "0"))
    options = parser.parse_args(args[1:])
    made = build(name, format.records, options)
    _show(made, options.out)
    return _verdict(made, options)


def _list() -> str:
    return "formats:\n" + "\n".join(f"  {name:<14} {what}" for name, (_, what) in FORMATS.items())


def _add_common(parser: argparse.ArgumentParser, max_missing: str) -> None:
    group = parser.add_argument_group("shards")
    group.add_argument("--out", type=Path, required=True, help="new folder for NNNNN.tar, their indexes and manifest.json")
    group.add_argument("--shard-size", type=int, default=SHARD_SIZE, help=f"samples in one shard (default {SHARD_SIZE})")
    group.add_argument("--shuffle", type=int, metavar="SEED", help="shuffle the samples over all shards (default: the order of the source)")
    group.add_argument("--limit", type=int, help="the first so many records only, to try a command")
    group.add_argument("--check", choices=CHECKS, default="full", help="of pictures: decode them (default), read their headers, or neither")
    group.add_argument(
        "--max-missing",
        type=amount,
        default=amount(max_missing),
        metavar="N|N%",
        help=f"exit code 1 where more is left out: a number of records, or a share in percent (default {max_missing.replace('%', '%%')})",
    )
    engine.add_options(group)


def amount(text: str) -> tuple[float, bool]:
    """``12`` -> (12, False), ``1.5%`` -> (1.5, True)."""
    number = float(text.removesuffix("%"))
    if number < 0:
        raise ValueError(text)
    return number, text.endswith("%")


def build(name: str, records: Callable[[argparse.Namespace], Iterator[Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Write the folder ``options.out``; returns what was made: counts, and what was left out by reason.

    Raises:
        DataError, OSError: see :func:`main`. What was finished is kept and found by the next call.
    """
    out = options.out
    if options.shard_size < 1:
        raise DataError(f"--shard-size {options.shard_size}: at least one sample must fit")
    folder = out.absolute().parent / f".{out.name}.building"
    with locked(str(folder)):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"{out} exists and is not an empty folder: choose another --out or remove it")
        request = {"version": VERSION, "format": name, **_request(options)}
        head = build_spool.kept(folder / _WORK, request)
        if head is None:
            head = _spool(folder, request, records, options)
        made = _finish(folder, name, request, _shards(folder, head, options), options.out.name)
        if out.exists():
            out.rmdir()
        os.replace(folder, out)
        shutil.rmtree(out / _WORK)
    return made


def _request(options: argparse.Namespace) -> dict[str, Any]:
    """What the build depends on: the options, and the sizes and times of the files that they name (``--images`` is not looked into)."""
    chosen = {name: value for name, value in vars(options).items() if name not in _ASIDE}
    named = [value if isinstance(value, list) else [value] for name, value in chosen.items() if name != "images"]
    paths = [path for values in named for path in values if isinstance(path, Path)]
    inside = lambda folder: sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names)
    files = [file for path in paths for file in (inside(path) if path.is_dir() else [path]) if file.is_file()]
    stamps = hashlib.sha256(json.dumps([engine.stamp(file) for file in files]).encode()).hexdigest()
    return {"options": json.loads(json.dumps(chosen, default=str)), "files": stamps}


def _spool(folder: Path, request: Any, records: Callable[..., Iterator[Any]], options: argparse.Namespace) -> dict[str, Any]:
    if (folder / _WORK / "head.json").exists():
        print(f"mmpretrain: an unfinished build of {options.out} had other options or sources; beginning anew", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / _WORK).mkdir(parents=True)
    try:
        with _counting(not options.quiet) as report:
            head = build_spool.fill(folder / _WORK, request, _readable(records(options)), options.shuffle, options.limit, report)
        if not head["records"]:
            raise DataError(f"no sample in {_sources(options)}{_first_reason(folder, request)}")
    except (ValueError, OSError):
        shutil.rmtree(folder)
        raise
    return head


def _readable(records: Iterator[Any]) -> Iterator[Any]:
    """The same records; what a format stumbles over in its source becomes one line."""
    number = 0
    try:
        for record in records:
            yield record
            number += 1
    except KeyError as error:
        raise DataError(f"the annotations have no field {error} where this format has one (after {number} records)") from error
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the annotations are not of this format (after {number} records: {type(error).__name__}: {error})") from error


def _sources(options: argparse.Namespace) -> str:
    """The files and folders that the options name, without those of pictures."""
    named = [value for name, value in vars(options).items() if name not in ("out", "images")]
    paths = [str(path) for value in named for path in (value if isinstance(value, list) else [value]) if isinstance(path, Path)]
    return ", ".join(paths[:_SHOWN]) + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "") or "the source"


def _first_reason(folder: Path, request: dict[str, Any]) -> str:
    with open(folder / _WORK / "skipped.jsonl", encoding="utf-8") as file:
        found = file.readline()
    return f"; the first was left out: {_said(Skip(**json.loads(found)), request)}" if found else ""


def _said(skip: Skip, request: dict[str, Any]) -> str:
    """What was left out, why, and what to do where pictures were not found."""
    options, remedy = request["options"], ""
    if skip.reason == MISSING and "images" in options and not options.get("bytes"):
        given = " ".join(options["images"] or ())
        remedy = f"; is --images {given} their folder?" if given else "; name the folder of the pictures by --images FOLDER"
    return f"{skip.name}: {skip.reason}{f' ({skip.detail})' if skip.detail else ''}{remedy}"


@contextlib.contextmanager
def _counting(wanted: bool) -> Iterator[Callable[[int], None]]:
    """The number of records while the annotations are read: in place on a terminal, else a line at times."""
    from rich.console import Console

    console, last = Console(stderr=True), time.monotonic()

    def line(count: int) -> None:
        nonlocal last
        if wanted and time.monotonic() - last >= engine.EVERY:
            last = time.monotonic()
            console.print(f"reading annotations: {count} records", highlight=False)

    if not (wanted and console.is_terminal):
        yield line
        return
    with console.status("reading annotations") as status:
        yield lambda count: status.update(f"reading annotations: {count} records")


def _shards(folder: Path, head: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    ranges = list(chunks(head["records"], options.shard_size))
    width = max(5, len(str(len(ranges) - 1)))
    common = {"spool": str(folder / _WORK), "sha256": head["sha256"], "check": options.check}
    works = {
        f"{number:0{width}d}.tar": {**common, "start": start, "stop": stop, "out": str(folder / f"{number:0{width}d}.tar")}
        for number, (start, stop) in enumerate(ranges)
    }
    found = engine.run(
        write,
        works,
        title=f"shards of {options.out.name}",
        state=folder / _WORK / "state",
        valid=lambda name, result: whole(works[name], result),
        **engine.options_of(options),
    )
    return list(found.values())


def _finish(folder: Path, name: str, request: dict[str, Any], results: list[dict[str, Any]], title: str) -> dict[str, Any]:
    """Write the manifest and the list of what was left out."""
    reasons: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    skips = []
    with open(folder / _WORK / "skipped.jsonl", encoding="utf-8") as file:
        early = [Skip(**json.loads(line)) for line in file]
    for skip in early + [Skip(*found) for result in results for found in result["skipped"]]:
        reasons[skip.reason] += 1
        examples.setdefault(skip.reason, []).append(skip.name)
        skips.append(skip)
    written = [result for result in results if result["samples"]]
    if not written:
        shutil.rmtree(folder)
        common = reasons.most_common(1)[0][0]
        raise DataError(f"no record became a sample, such as {_said(next(skip for skip in skips if skip.reason == common), request)}")
    if skips:
        write_atomic(folder / "skipped.jsonl", b"".join(build_spool.line_of(skip) for skip in skips))
    totals = {what: sum(result[what] for result in written) for what in ("captions", "pictures", "resized")}
    skipped = {reason: {"count": count, "first": examples[reason][:_SHOWN]} for reason, count in reasons.most_common()}
    made = {"tool": "build", "version": VERSION, "format": name, "options": request["options"], **totals, "skipped": skipped}
    shards = [{what: result[what] for what in ("file", "samples", "bytes", "sha256")} for result in written]
    write_manifest(folder, shards, made, title)
    return {**made, "samples": sum(one["samples"] for one in shards), "bytes": sum(one["bytes"] for one in shards), "shards": len(shards)}


def _show(made: dict[str, Any], out: Path) -> None:
    rows: list[tuple[str, object, str]] = [(what, made[what], "") for what in ("samples", "captions", "pictures", "shards")]
    rows.append(("size", megabytes(made["bytes"]), ""))
    for reason, found in made["skipped"].items():
        first = ", ".join(found["first"]).encode("utf-8", "replace").decode()  # names of files need not be UTF-8
        rows.append((f"left out: {reason}", found["count"], first + (", ..." if found["count"] > _SHOWN else "")))
    if made["resized"]:
        rows.append(("not of the annotated size", made["resized"], "their boxes may not fit: are these the right pictures?"))
    if not any(note for *_, note in rows):
        table(str(out), ("", "number"), [row[:2] for row in rows])
        return
    table(str(out), ("", "number", "which"), rows, numbers=False)


def _verdict(made: dict[str, Any], options: argparse.Namespace) -> int:
    number, percent = options.max_missing
    lost = sum(found["count"] for found in made["skipped"].values())
    allowed = number / 100 * (lost + made["samples"]) if percent else number
    if lost <= allowed:
        return 0
    asked = f"{number:g}{'%' if percent else ''}"
    said = f"{lost} records were left out, more than --max-missing {asked}; they are named in {options.out}/skipped.jsonl"
    print(f"mmpretrain data build: {said}", file=sys.stderr)
    return 1
