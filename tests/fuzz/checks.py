"""What must hold for any bytes: readers end with a result or with their own error, and lose nothing silently.

Shared by the fuzz targets beside this file and by ``tests/data/test_fuzz.py``.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from mmpretrain.data import codes, decode, index, regions, tar
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.types import Regions


def plain_members(data: bytes) -> list[tuple[int, int]]:
    """(offset, size) of every regular file that ``tarfile`` reads, up to where it stops."""
    found: list[tuple[int, int]] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            while (member := archive.next()) is not None:
                if member.isreg() and not member.issparse():
                    found.append((member.offset_data, member.size))
    except (tarfile.TarError, ValueError, OverflowError, EOFError, OSError, RecursionError):
        return found  # what it saw before it gave up must not be missing either
    return found


def check_tar(data: bytes, sound: bool = False) -> None:
    """``tar.members`` on any bytes: an error of ours, or every file that ``tarfile`` sees. ``sound``: an error is a fault."""
    try:
        ours = [(member.offset, member.size) for member in tar.members(data, "shard.tar")]
    except DataError as error:
        if sound:
            raise AssertionError(f"a sound archive is refused: {error}") from error
        return
    assert all(0 <= offset and offset + size <= len(data) for offset, size in ours), "a member outside the file"
    missing = set(plain_members(data)) - set(ours)
    assert not missing, f"silent loss: tarfile sees {sorted(missing)}"


def check_index(data: bytes) -> None:
    """``index.build`` on a file of any bytes: an error of ours, or an index that says where every allowed member lies."""
    file = os.memfd_create("shard.tar")
    try:
        os.write(file, data)
        try:
            made = index.build(Path(f"/proc/self/fd/{file}"))
        except DataError:
            return
    finally:
        os.close(file)
    keys = [made.key(sample) for sample in range(len(made))]
    assert len(set(keys)) == len(keys), "a key stands twice"
    seen = 0
    for sample in range(len(made)):
        for name, offset, size, crc in made.members(sample):
            assert decode.allowed(name) and zlib.crc32(data[offset : offset + size]) == crc, f"{keys[sample]}.{name}"
            seen += 1
    files = sum(1 for _ in tar.members(data, "shard.tar"))
    assert seen + sum(made.ignored.values()) == files, f"silent loss: {files} files, {seen} indexed, {made.ignored} ignored"


def check_texts(data: bytes) -> None:
    """Captions and JSON of any bytes: BadSample, or texts without NUL that are UTF-8."""
    for members in ({"txt": data}, {"json": data}, {"txt": data, "json": data}):
        try:
            found = decode.assemble("key", members)
        except BadSample:
            continue
        for text in (*found.captions, *(statement.text for statement in found.statements)):
            assert text and "\0" not in text and text == text.strip() and len(text.encode("utf-8")) <= decode.MAX_TEXT


def check_regions(data: bytes, ignore_checksums: bool = False) -> Regions | None:
    """``decode_regions`` on any bytes: BadSample, or regions within the schema that numpy reads alike and that survive being written."""
    try:
        found = regions.decode_regions(data)
    except BadSample:
        return None
    count, width = found.features.shape
    assert (count, width) == regions.region_counts(data) and count <= regions.MAX_REGIONS
    height, breadth = found.image_size.tolist()
    assert ((found.boxes >= 0) & (found.boxes <= [breadth, height, breadth, height])).all()
    again = regions.decode_regions(regions.encode_regions(found))
    for name, one, other in zip(found._fields, found, again, strict=True):
        assert (one is None and other is None) or np.array_equal(one, other), name
    if not ignore_checksums:
        try:
            theirs = dict(np.load(io.BytesIO(data), allow_pickle=False))
        except (NotImplementedError, zipfile.BadZipFile):  # fields that we do not read: versions, times, extras
            return found
        for name in set(theirs) - {"boxes"}:  # boxes are clipped
            assert np.array_equal(theirs[name], getattr(found, name)), name
    return found


def check_codes(data: bytes) -> None:
    """``decode_codes`` on any bytes: BadSample, or a grid of ids that numpy reads alike and that survives being written."""
    try:
        found = codes.decode_codes(data)
    except BadSample:
        return
    assert found.shape == codes.code_grid(data) and found.size and (found >= 0).all()
    assert np.array_equal(codes.decode_codes(codes.encode_codes(found)), found)
    assert np.array_equal(np.load(io.BytesIO(data), allow_pickle=False), found)
