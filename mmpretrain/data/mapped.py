"""Arrays of an uncompressed ``.npz`` without reading them."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import zipfile
from pathlib import Path

import numpy as np

_SMALL = 1 << 16  # bytes


def map_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed ``.npz`` mapped into memory: read only, one mapping for all of them. A mapping keeps a file
    descriptor, so that small files are read instead, and the process takes as many descriptors as it may where its own run out.

    Raises:
        ValueError: compressed, cut short, or object arrays.
        OSError: more shards than file descriptors (``ulimit -n``).
    """
    try:
        return _map(path)
    except OSError as error:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if error.errno != errno.EMFILE or soft == hard:
            raise
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return _map(path)


def _map(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            size = os.fstat(file.fileno()).st_size
            small = size <= _SMALL
            mapped = os.pread(file.fileno(), size, 0) if small else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{path}: {entry.filename} is compressed")
                with archive.open(entry) as member:
                    version = np.lib.format.read_magic(member)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(member)
                    head = member.tell()
                if dtype.hasobject:
                    raise ValueError(f"{path}: {entry.filename} holds objects")
                local = entry.header_offset
                start = (
                    local
                    + 30
                    + int.from_bytes(mapped[local + 26 : local + 28], "little")
                    + int.from_bytes(mapped[local + 28 : local + 30], "little")
                )
                count = int(np.prod(shape))
                found[entry.filename.removesuffix(".npy")] = np.frombuffer(mapped, dtype, count, start + head).reshape(shape)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: {error}") from None
    return found
