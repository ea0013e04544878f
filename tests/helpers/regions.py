"""Small regions for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from helpers.shards import sample, write_tar

from mmpretrain.data.regions import encode_regions
from mmpretrain.types import Regions


def arrays(count: int = 4, width: int = 5, size: tuple[int, int] = (48, 64), seed: int = 0) -> dict[str, np.ndarray]:
    """Every array of the schema for ``count`` regions of a picture of ``size`` (height, width)."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4) * np.asarray([size[1], size[0]] * 2)
    probabilities = rng.dirichlet(np.ones(3), count).reshape(count, 3)
    return {
        "features": rng.standard_normal((count, width)).astype(np.float16),
        "boxes": corners.astype(np.float32),
        "image_size": np.asarray(size, dtype=np.int32),
        "classes": probabilities.argmax(1).astype(np.int16),
        "class_probs": probabilities.astype(np.float16),
        "attributes": np.full(count, -1, dtype=np.int16),
        "attribute_probs": (probabilities[:, :2] / 2).astype(np.float16),
        "scores": rng.random(count).astype(np.float32),
        "global_feature": rng.standard_normal(width).astype(np.float16),
    }


def made(count: int = 4, width: int = 5, seed: int = 0) -> Regions:
    """Regions with every array."""
    return Regions(**arrays(count, width, seed=seed))


def count_of(number: int) -> int:
    """Regions of sample ``number`` in :func:`write_regions`."""
    return 1 + (7 * number) % 5


def of_sample(number: int, width: int = 5, drop: tuple[str, ...] = ()) -> Regions:
    """The regions of sample ``number``, each with features of its own, without the arrays ``drop``."""
    found = made(count_of(number), width, seed=number)
    return found._replace(**dict.fromkeys(drop))


def write_regions(
    folder: Path,
    sizes: Sequence[int] = (5, 4, 3),
    width: int = 5,
    image: bool = True,
    drop: tuple[str, ...] = (),
    without: tuple[int, ...] = (),
) -> Path:
    """Shards as those of ``helpers.shards.write_shards`` with regions; ``without``: samples that have none."""
    number = 0
    for shard, size in enumerate(sizes):
        members = []
        for n in range(number, number + size):
            own = [member for member in sample(n) if image or not member[0].endswith(".png")]
            more = [(f"k{n:05d}.regions.npz", encode_regions(of_sample(n, width, drop)))] if n not in without else []
            members += [*own, *more]
        write_tar(folder / f"{shard:05d}.tar", members)
        number += size
    return folder
