"""Arrays of an uncompressed ``.npz`` without reading them into memory; their checksums are verified."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import zipfile
import zlib
from pathlib import Path

import numpy as np

_MACOS = 10_240  # descriptors; granted at most where it says that there is no limit
_SMALL = 1 << 16  # bytes
_PIECE = 1 << 20  # bytes of which a checksum is taken at a time


def map_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed ``.npz`` mapped into memory: read only, one mapping for all of them. A mapping keeps a file
    descriptor, so that small files are read instead, and the process takes as many descriptors as it may where its own run out. The file is
    read through once for its checksums.

    Raises:
        ValueError: compressed, damaged in any way, or object arrays.
        OSError: no such file, or more shards than file descriptors (``ulimit -n``).
    """
    try:
        return _map(path)
    except OSError as error:
        if error.errno != errno.EMFILE or not more_files(1 << 20):
            raise
        return _map(path)


def more_files(count: int = 65_536) -> bool:
    """Let the process open up to ``count`` files, as far as the system allows it; whether these are more than before."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (count, min(count, _MACOS)):
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if before == resource.RLIM_INFINITY or most <= before:
            return False
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return True
    return False


def _map(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            size = os.fstat(file.fileno()).st_size
            small = size <= _SMALL
            mapped = os.pread(file.fileno(), size, 0) if small else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return {entry.filename.removesuffix(".npy"): _array(archive, entry, file.fileno(), mapped) for entry in archive.infolist()}
    except OSError as error:
        if error.errno is None:  # zipfile's own
            raise ValueError(f"{path}: {error}") from None
        raise
    except Exception as error:  # noqa: BLE001  damaged bytes: zipfile, numpy and its parser of headers raise nearly anything
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from None


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: int, mapped: bytes | mmap.mmap) -> np.ndarray:
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise ValueError(f"{entry.filename} is compressed")
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
        head = member.tell()
    if dtype.hasobject:
        raise ValueError(f"{entry.filename} holds objects")
    local = entry.header_offset
    names = int.from_bytes(mapped[local + 26 : local + 28], "little") + int.from_bytes(mapped[local + 28 : local + 30], "little")
    start, count = local + 30 + names, int(np.prod(shape))
    if head + count * dtype.itemsize != entry.file_size or _crc(file, start, entry.file_size) != entry.CRC:
        raise ValueError(f"{entry.filename} is not as it was written")
    return np.frombuffer(mapped, dtype, count, start + head).reshape(shape)


def _crc(file: int, start: int, size: int) -> int:
    """CRC-32 of a part of a file; by reads, since pages of a mapping would count as memory of the process."""
    crc, end = 0, start + size
    while start < end and (piece := os.pread(file, min(_PIECE, end - start), start)):
        crc, start = zlib.crc32(piece, crc), start + len(piece)
    return crc
