"""Small shards with image codes for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from helpers.shards import sample, write_tar

from mmpretrain.data.codes import encode_codes
from mmpretrain.data.codes_info import CodesInfo, write_info

KNOWN, GRID = 16, (2, 3)
INFO = CodesInfo("1" * 64, KNOWN, GRID, "dvae 1", "2" * 64, {"mode": "squash", "size": 16})


def codes_of(number: int, grid: tuple[int, int] = GRID) -> np.ndarray:
    """The codes of sample ``number`` in :func:`write_codes`."""
    return np.random.default_rng(number).integers(KNOWN, size=grid)


def write_codes(
    folder: Path,
    sizes: Sequence[int] = (5, 4, 3),
    info: CodesInfo | None = INFO,
    image: bool = True,
    text: bool = True,
    without: tuple[int, ...] = (),
    first: int = 0,
) -> Path:
    """Shards as those of ``helpers.shards.write_shards`` with codes; ``without``: samples that have none; ``first``: its number."""
    number = first
    for shard, size in enumerate(sizes):
        members = []
        for n in range(number, number + size):
            own = [member for member in sample(n) if (image if member[0].endswith(".png") else text)]
            own += [(f"k{n:05d}.codes.npy", encode_codes(codes_of(n, info.grid if info else GRID)))] if n not in without else []
            members += own
        write_tar(folder / f"{shard:05d}.tar", members)
        number += size
    if info is not None:
        write_info(folder, info)
    return folder
