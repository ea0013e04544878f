"""What a format yields and a shard is written from: records, places of pictures, and what was left out.

A record names its pictures by where they lie; bytes are read once, by the process that writes the shard. So records are small, pass through
JSON, and can be shuffled by the million.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

_NOT_IN_KEYS = re.compile(r"[^\w/-]+")
MISSING = "picture is missing"  # as a reason of a Skip
NOT_UTF8 = "text is not UTF-8"

# a file: its path. A part of a file: [path, offset, size]. A cell of an Arrow or Parquet file: [path, column, batch, row].
Place: TypeAlias = "str | list[Any]"


class Record(NamedTuple):
    """One sample to be. Without pictures it is a text; without captions and statements, a picture with annotations."""

    key: str  # unique in the set; no dots
    pictures: tuple[Place, ...] = ()
    captions: tuple[str, ...] = ()
    meta: Mapping[str, Any] = {}  # the rest of KEY.json: JSON types only; ``statements`` and ``questions`` among them
    absent: str = ""  # the name under which a picture was looked for and not found; such a record becomes a Skip


class Skip(NamedTuple):
    """Something of the source that did not become a sample."""

    name: str  # a key, or file and line
    reason: str  # one of few, to be counted
    detail: str = ""


def clean_key(text: str) -> str:
    """A name as a key: letters, digits, ``_``, ``-`` and ``/``; dots and all else become ``_`` (a dot would end the key)."""
    parts = [_NOT_IN_KEYS.sub("_", part) for part in text.replace("\\", "/").split("/")]
    return "/".join(part for part in parts if part)


def not_utf8(text: str) -> str:
    """What of a text is not UTF-8: a byte that was none when it was read, or half of a surrogate pair; empty for a good one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        said = f"byte {byte:#04x} at {text[max(0, error.start - 10) : error.start]!r}"
        return f"{said}; convert the file, such as by iconv" if 0x80 <= byte <= 0xFF else "half of a surrogate pair"
    return ""


def number_or_text(value: Any) -> Any:
    """An id as the source has it; digits stay text, so that leading zeros survive."""
    return value if isinstance(value, int | str) and not isinstance(value, bool) else str(value)


def captioned(
    key: str,
    pictures: Sequence[Place | None],
    captions: Iterable[tuple[Any, Mapping[str, Any]]],
    meta: Mapping[str, Any],
    absent: str = "",
) -> Record | Skip:
    """A record of described pictures, or why there is none.

    Args:
        key: of the sample.
        pictures: where they lie; None for one that was looked for and not found.
        captions: (text, what is known of this caption). Empty texts are left out; what is known becomes lists beside ``captions``:
            ``{"ids": 7}`` of each caption becomes ``caption_ids``.
        meta: the rest of KEY.json.
        absent: the name of a picture that was not found.
    """
    if any(picture is None for picture in pictures):
        return Skip(key, MISSING, absent)
    said = [(text.strip(), known) for text, known in captions if isinstance(text, str) and text.strip()]
    if not said:
        return Skip(key, "no caption")
    names = list(dict.fromkeys(name for _, known in said for name in known))
    beside = {f"caption_{name}": [known.get(name) for _, known in said] for name in names}
    return Record(key, tuple(p for p in pictures if p is not None), tuple(text for text, _ in said), {**meta, **beside})
