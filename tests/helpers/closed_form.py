"""Numbers from whole-number arithmetic alone, the same everywhere: weights and inputs of golden files, which need not be stored."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_WORD = np.uint64(0xFFFFFFFF)


def uniform(count: int, salt: int) -> np.ndarray:
    """``count`` numbers in [-1, 1), float64; another row of them for another ``salt``."""
    h = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(salt) * np.uint64(40503) + np.uint64(1)) & _WORD
    for shift, factor in ((15, 2246822519), (13, 3266489917), (16, 668265263)):
        h = ((h ^ (h >> np.uint64(shift))) * np.uint64(factor)) & _WORD
    return (h ^ (h >> np.uint64(15))).astype(np.float64) / 2.0**31 - 1


def tensor(shape: Sequence[int], salt: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """float32 of ``shape``: shift + scale * uniform."""
    return torch.from_numpy((shift + scale * uniform(int(np.prod(shape)), salt)).astype(np.float32).reshape(tuple(shape)))


def weight(name: str, shape: Sequence[int]) -> Tensor:
    """A value for the parameter or statistic of that (released) name, salted by it.

    Matrices and convolutions by their fan-in, tables within 0.5, gains of norms and running variances around 1, gains that end the branch
    of a bottleneck around 0.3, all other vectors within 0.1.
    """
    salt, last = zlib.crc32(name.encode()), name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    if len(shape) > 1:
        return tensor(shape, salt, 0.5 if "embedding" in name else (3 / int(np.prod(shape[1:]))) ** 0.5)
    if last == "weight" and ".bn3." in name:
        return tensor(shape, salt, 0.1, 0.3)
    return tensor(shape, salt, 0.3, 1.0) if last in ("weight", "running_var") else tensor(shape, salt, 0.1)
