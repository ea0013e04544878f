"""Fuzz target (atheris): the reader of ``KEY.regions.npz``. Numpy reads every file that is accepted, and must find the same arrays.

    python tests/fuzz/regions.py -max_total_time=600

The last byte of an input decides whether checksums are compared, so that mutations reach what lies behind them.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import atheris
import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
import mmpretrain.types  # noqa: E402, F401  (torch is not instrumented)

with atheris.instrument_imports(include=["mmpretrain.data.regions"]):
    from fuzz.checks import check_regions, regions

from helpers.regions import arrays, made  # noqa: E402

REAL = regions.zlib


class Equal(int):
    """A checksum that equals any other."""

    __hash__ = int.__hash__

    def __ne__(self, other: object) -> bool:
        return False


BLIND = SimpleNamespace(crc32=lambda body: Equal(0), decompressobj=REAL.decompressobj, error=REAL.error)


def test_one_input(data: bytes) -> None:
    ignore = bool(data) and bool(data[-1] & 1)
    regions.zlib = BLIND if ignore else REAL
    check_regions(data[:-1], ignore_checksums=ignore)


def seeds(folder: Path) -> None:
    """Our own files and numpy's, packed and not."""
    for number, count in enumerate((0, 1, 3)):
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays(count))
        for kind, data in (("own", regions.encode_regions(made(count))), ("numpy", packed.getvalue())):
            for flag in (0, 1):
                (folder / f"{number}-{kind}-{flag}").write_bytes(data + bytes([flag]))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as corpus:
        seeds(Path(corpus))
        atheris.Setup([*sys.argv, corpus, "-max_len=4096"], test_one_input)
        atheris.Fuzz()
