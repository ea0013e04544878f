"""Strict reading of uncompressed USTAR, GNU and PAX archives: every irregularity is an error with its offset.

``tarfile`` takes a damaged or cut header after the first for the end of the archive, silently. Here an archive must end with two blocks of
zeros, and nothing but zeros may follow them.
"""

from __future__ import annotations

import mmap
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from mmpretrain.data.errors import DataError

BLOCK = 512
_ZEROS = bytes(BLOCK)
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX_MOST = 1 << 20


class Member(NamedTuple):
    """A regular file in an archive."""

    name: str
    header: int  # offset of its (first) header
    offset: int  # of its bytes
    size: int


def members(data: mmap.mmap | bytes, path: str) -> Iterator[Member]:
    """The regular files of an archive in their order. Folders, links and devices are passed over.

    Raises:
        DataError: naming ``path`` and the offset: cut short, damaged header, missing end blocks, compressed or sparse members.
    """
    size, at = len(data), 0
    if size == 0:
        raise DataError(f"{path}: the file is empty; write the shard again")
    if bytes(data[:9]).lower().startswith((b"<!doctype", b"<html")):
        raise DataError(f"{path}: a web page, not a tar; copy the shard again (the address of a folder of shards ends in '/')")
    extended: dict[str, str] = {}
    start: int | None = None
    while True:
        block = data[at : at + BLOCK]
        if len(block) == 0:
            raise DataError(f"{path}: no end-of-archive blocks at offset {at}: the shard is cut short; copy it again")
        if len(block) < BLOCK:
            raise DataError(f"{path}: cut inside a header at offset {at}; copy the shard again")
        if block == _ZEROS:
            return _check_end(data, at, path)
        info = _header(block, at, path)
        first = at if start is None else start
        body, end = at + BLOCK, at + BLOCK + info.size if _has_body(info) else at + BLOCK
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if info.size > _PAX_MOST or end > size:
                raise DataError(f"{path}: extended header of {info.size} bytes at offset {at} is cut or too long; write the shard again")
            extended.update(_extended(info, bytes(data[body:end]), at, path))
            start = first
        else:
            name, length = extended.pop("path", None), int(extended.pop("size", info.size))
            name = _plain(info.name, at, path) if name is None else name
            end = body + length if _has_body(info) else body
            if end > size:
                raise DataError(
                    f"{path}: member {name!r} at offset {at} needs {end - size} bytes more than the file has: cut short; copy it again"
                )
            if info.type in _REGULAR:
                if any("sparse" in key for key in extended):
                    raise DataError(f"{path}: member {name!r} at offset {at} is sparse, which is not read")
                yield Member(name, first, body, length)
            elif info.type == tarfile.GNUTYPE_SPARSE:
                raise DataError(f"{path}: member {name!r} at offset {at} is sparse, which is not read")
            start, extended = None, {}
        at = -(-end // BLOCK) * BLOCK


def _has_body(info: tarfile.TarInfo) -> bool:
    return info.type not in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


def _header(block: bytes, at: int, path: str) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")  # a long name is cut here, within a character maybe
    except tarfile.HeaderError:
        if at == 0:
            raise DataError(f"{path}: not a plain tar archive (compressed ones cannot be read at random; unpack it first)") from None
        raise DataError(f"{path}: damaged header at offset {at}; copy the shard again") from None
    if info.size < 0:
        raise DataError(f"{path}: damaged header at offset {at}: negative size")
    return info


def _plain(name: str, at: int, path: str) -> str:
    """The name in a header, where no extended one stands for it."""
    return _utf8(name.encode("utf-8", "surrogateescape"), at, path, "member name")


def _extended(info: tarfile.TarInfo, body: bytes, at: int, path: str) -> dict[str, str]:
    """What an extended header says of the next member. Global PAX headers are passed over."""
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": _utf8(body.rstrip(b"\0"), at, path)}
    found: dict[str, str] = {}
    while info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE) and body.rstrip(b"\0"):
        digits, space, _ = body.partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        name, equals, value = body[len(digits) + 1 : length].partition(b"=")
        if not equals or length > len(body) or not value.endswith(b"\n"):
            raise DataError(f"{path}: damaged extended header at offset {at}; copy the shard again")
        found[_utf8(name, at, path)] = _utf8(value[:-1], at, path)
        body = body[length:]
    if "size" in found and not found["size"].isdigit():
        raise DataError(f"{path}: damaged extended header at offset {at}; copy the shard again")
    return found


def _utf8(data: bytes, at: int, path: str, what: str = "extended header") -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path}: the {what} at offset {at} is not UTF-8; write the shard again") from None


def _check_end(data: mmap.mmap | bytes, at: int, path: str) -> None:
    if len(data) < at + 2 * BLOCK:
        raise DataError(f"{path}: one of the two end-of-archive blocks at offset {at} is missing: the shard is cut short; copy it again")
    while at < len(data):
        piece = data[at : at + (1 << 20)]
        if piece.count(0) != len(piece):
            raise DataError(f"{path}: data after the end of the archive, near offset {at}: the shard is damaged; write it again")
        at += len(piece)
