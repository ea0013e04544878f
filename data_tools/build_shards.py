"""One shard from its part of the list of records: the function that runs in every process, on this machine or on Ray.

The bytes of a shard depend on the records and pictures alone. It appears complete or not at all, with its index beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmpretrain.data.decode import IMAGE, assemble, limit
from mmpretrain.data.errors import BadSample
from mmpretrain.data.index import open_index
from mmpretrain.data_tools import build_pictures, build_spool
from mmpretrain.data_tools.build_pictures import BadPicture
from mmpretrain.data_tools.build_records import NOT_UTF8, Record, Skip, not_utf8
from mmpretrain.data_tools.shards import write_shard


def write(work: Mapping[str, Any]) -> dict[str, Any]:
    """Write one shard and its index.

    Args:
        work: ``spool`` (folder of the list), ``start`` and ``stop`` (records), ``out`` (the tar), ``check`` (of pictures), and whatever
            else tells one list from another.

    Returns:
        ``file``, ``samples``, ``bytes``, ``sha256``, ``captions``, ``pictures``, ``resized`` (samples whose picture has another size than
        the annotations say), ``skipped``: ``[name, reason, detail]`` each.

    Raises:
        OSError: the shard cannot be written.
    """
    counts = {"captions": 0, "pictures": 0, "resized": 0}
    skipped: list[Skip] = []
    out = Path(work["out"])

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for record in build_spool.read(Path(work["spool"]), work["start"], work["stop"]):
            try:
                members, resized = sample(record, work["check"])
            except BadPicture as error:
                skipped.append(Skip(record.key, error.reason, error.detail))
                continue
            counts["captions"] += len(record.captions)
            counts["pictures"] += len(record.pictures)
            counts["resized"] += resized
            yield record.key, members

    made = write_shard(out, samples())
    if made["samples"]:
        open_index(out)
    else:
        out.unlink()
    return {**made, **counts, "skipped": [list(skip) for skip in skipped]}


def whole(work: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether the shard of an earlier :func:`write` is there in full length."""
    path = Path(work["out"])
    return not result["samples"] or (path.is_file() and path.stat().st_size == result["bytes"])


def sample(record: Record, check: str) -> tuple[dict[str, bytes], bool]:
    """The members of a sample, extension -> bytes, and whether a picture has another size than the annotations say.

    Raises:
        BadPicture: a picture is missing, damaged or of another format, or the texts break the rules of shards.
    """
    members: dict[str, bytes] = {}
    sizes = []
    for number, place in enumerate(record.pictures):
        data = build_pictures.read(place)
        found = build_pictures.check(data, check)
        members[found.extension if len(record.pictures) == 1 else f"img{number}.{found.extension}"] = data
        sizes.append((found.width, found.height))
    meta, resized = _with_size(record.meta, sizes)
    if record.captions:
        members["txt"] = _encoded(record.captions[0])
    if meta or len(record.captions) > 1 or record.pictures:
        said = {"captions": list(record.captions)} if record.captions else {}
        members["json"] = _encoded(json.dumps({**said, **meta, **said}, ensure_ascii=False, separators=(",", ":")))
    try:
        for name, data in members.items():
            if (most := limit(name)) is not None and len(data) > most:
                error = f"{name} of {len(data)} bytes is longer than {most}"
                raise BadPicture("picture has too many bytes", error) if IMAGE.fullmatch(name) else BadSample(error)
        assemble(record.key, members)
    except BadSample as error:
        raise BadPicture("texts break the rules of shards", str(error)) from None
    return members, resized


def _with_size(meta: Mapping[str, Any], sizes: list[tuple[int, int]]) -> tuple[dict[str, Any], bool]:
    """``width`` and ``height`` of a single picture, where the annotations have none; whether theirs differ."""
    if len(sizes) != 1 or not all(sizes[0]):
        return dict(meta), False
    stated = (_side(meta.get("width")), _side(meta.get("height")))
    width, height = stated if all(stated) else sizes[0]
    return {**meta, "width": width, "height": height}, (width, height) != sizes[0]


def _side(value: Any) -> int:
    """Pixels as an annotation states them, also as text (tables have no numbers); 0 where it does not."""
    try:
        return round(float(value)) if isinstance(value, int | float | str) else 0
    except (ValueError, OverflowError):
        return 0


def _encoded(text: str) -> bytes:
    if broken := not_utf8(text):
        raise BadPicture(NOT_UTF8, broken)
    return text.encode("utf-8")


def chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of shards of ``size`` records."""
    return ((start, min(start + size, count)) for start in range(0, count, size))
