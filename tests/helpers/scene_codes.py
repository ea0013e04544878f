"""Codes of pictures that cost nothing: the colour of each cell of a grid, in six steps of red, green and blue. Deterministic, and to be
guessed from what is around, as codes of an autoencoder are."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from helpers.shards import write_tar
from PIL import Image

from mmpretrain.data.codes import encode_codes
from mmpretrain.data.codes_info import CodesInfo, write_info
from mmpretrain.data.image import ImageTransform

CODES = 512  # of which 216 are used
GRID = (8, 8)
TRANSFORM = ImageTransform(mode="squash", size=32, multiple=4, decoder="pil")
INFO = CodesInfo("c" * 64, CODES, GRID, "tests", transform=TRANSFORM.to_dict())


def codes_of(picture: bytes, grid: tuple[int, int] = GRID) -> np.ndarray:
    """The codes of a picture file, (rows, columns)."""
    cells = Image.open(io.BytesIO(picture)).convert("RGB").resize(grid[::-1], Image.Resampling.BOX)
    steps = (np.asarray(cells).astype(np.int64) * 6 // 256).clip(0, 5)
    return steps @ np.array([36, 6, 1])


def write(plain: Path, out: Path, grid: tuple[int, int] = GRID) -> Path:
    """The shards of ``plain`` with ``KEY.codes.npy`` beside every picture, and their ``codes.json``."""
    for shard in sorted(plain.glob("*.tar")):
        members: list[tuple[str, bytes]] = []
        with tarfile.open(shard) as archive:
            for member in archive:
                data = archive.extractfile(member).read()  # type: ignore[union-attr]
                members.append((member.name, data))
                if member.name.endswith(".png"):
                    members.append((f"{member.name.removesuffix('.png')}.codes.npy", encode_codes(codes_of(data, grid))))
        write_tar(out / shard.name, members)
    write_info(out, INFO._replace(grid=grid))
    return out
