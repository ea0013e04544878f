"""Small files that announce, or unfold to, much more than they hold."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

from helpers.pictures import bomb_png


def npz_bomb() -> bytes:
    """A file of a few hundred kilobytes that announces 96 MiB of features."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("features.npy", "w", force_zip64=True) as file:
        for _ in range(96):
            file.write(bytes(1 << 20))
    return buffer.getvalue()


def lying_npz() -> bytes:
    """The same, announcing 1 KB."""
    data = bytearray(npz_bomb())
    at = data.rindex(b"PK\1\2")
    data[at + 24 : at + 28] = (1024).to_bytes(4, "little")
    return bytes(data)


def lying_npy() -> bytes:
    """A file of a kilobyte that announces a thousand million codes."""
    text = b"{'descr': '<u2', 'fortran_order': False, 'shape': (31250, 32000), }\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(1000)


BOMBS = {  # name -> what reads it, its bytes
    "png": ("image", lambda: bomb_png(12000)),
    "gz": ("image", lambda: gzip.compress(bytes(100_000_000), 1)),
    "json": ("json", lambda: b'{"a":' + b"[" * 2_000_000 + b"]" * 2_000_000 + b"}"),
    "text": ("text", lambda: b"x" * 50_000_000),
    "npz": ("regions", npz_bomb),
    "lying npz": ("regions", lying_npz),
    "npy": ("codes", lying_npy),
}
MEMBERS = {
    "image": "png",
    "json": "json",
    "text": "txt",
    "regions": "regions.npz",
    "codes": "codes.npy",
}  # what reads it -> its member of a sample


def tar_of_zeros(path: Path, name: str, size: int) -> Path:
    """A shard with one large member, written without holding it."""
    info = tarfile.TarInfo(name)
    info.size = size
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(512 + -(-size // 512) * 512 + 1024)
    return path
