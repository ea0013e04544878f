"""Which patches of a picture are masked: blocks of them (BEiT, arXiv 2106.08254 section 2.4 and its released code), or any.

Blocks are drawn by rejection, one after another, so this is done on the host, for all pictures of a batch at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmpretrain import random

Grids = tuple[tuple[int, int], ...]
TRIES = 10  # for a block, as in the released code
_CHUNK = 32  # tries whose random numbers are made at once


@dataclass(frozen=True)
class PatchMasker:
    """How patches are chosen. Every draw is a function of (key of the sample, name, try or place of the patch).

    Args:
        kind: ``block``: rectangles, until ``share`` is reached or no further one is found; ``uniform``: exactly ``share``, any patches.
        share: of the patches of a picture that are masked, rounded down, at least one; of ``block`` at most so many.
        smallest: of ``block``, patches of a drawn rectangle at least; where less than that is left to mask, a rectangle must overlap with
            earlier ones.
        largest: patches of a drawn rectangle at most; None: all that are left.
        aspect: height over width of a rectangle is at least this and at most one over it, uniform in the logarithm.

    Raises:
        ValueError: an option out of its range.
    """

    kind: Literal["block", "uniform"] = "block"
    share: float = 0.4
    smallest: int = 16
    largest: int | None = None
    aspect: float = 0.3

    def __post_init__(self) -> None:
        if self.kind not in ("block", "uniform"):
            raise ValueError(f"PatchMasker: kind={self.kind!r}; choose block or uniform")
        if not 0 < self.share <= 1 or not 0 < self.aspect <= 1:
            raise ValueError(f"PatchMasker: share={self.share} and aspect={self.aspect} must be in (0, 1]")
        if self.smallest < 1 or (self.largest is not None and self.largest < self.smallest):
            raise ValueError(f"PatchMasker: smallest={self.smallest} must be at least 1, largest={self.largest} no less, or null")

    def wanted(self, grids: Grids) -> np.ndarray:
        """Patches to mask of each picture, int64 (B,)."""
        return np.array([max(1, int(self.share * rows * columns + 1e-9)) for rows, columns in grids], dtype=np.int64)

    def mask(self, keys_B: Tensor, grids: Grids, name: str) -> np.ndarray:
        """Which patches are masked, bool (N,), packed: those of the first picture in raster order, then those of the second, and so on.

        Args:
            keys_B: of the draws, on the CPU.
            grids: (rows, columns) of patches of each picture.
            name: of the use; makes the streams of the draws.
        """
        if self.kind == "uniform":
            return self._uniform(keys_B, grids, name)
        masks_BYX = _Blocks(self, grids).drawn(keys_B, name)
        return np.concatenate([mask[:rows, :columns].ravel() for mask, (rows, columns) in zip(masks_BYX, grids, strict=True)])

    def _uniform(self, keys_B: Tensor, grids: Grids, name: str) -> np.ndarray:
        counts = [rows * columns for rows, columns in grids]
        draws_BV = random.uniform(keys_B, random.stream(f"{name}/patches/uniform"), max(counts)).numpy()
        masked = []
        for draws, count, wanted in zip(draws_BV, counts, self.wanted(grids).tolist(), strict=True):
            own = np.zeros(count, dtype=bool)
            own[np.argsort(draws[:count], kind="stable")[:wanted]] = True
            masked.append(own)
        return np.concatenate(masked)


class _Try(NamedTuple):
    """A drawn rectangle for each of some pictures."""

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    fits: np.ndarray  # whether it is smaller than the picture both ways, as the released code asks


class _Blocks:
    """Rectangles drawn one after another until each picture is done."""

    def __init__(self, masker: PatchMasker, grids: Grids) -> None:
        self.masker, self.wanted = masker, masker.wanted(grids)
        self.rows, self.columns = (np.array(side, dtype=np.int64) for side in zip(*grids, strict=True))
        self.y, self.x = np.arange(self.rows.max())[:, None], np.arange(self.columns.max())
        self.masks_BYX = np.zeros((len(grids), self.rows.max(), self.columns.max()), dtype=bool)

    def drawn(self, keys_B: Tensor, name: str) -> np.ndarray:
        """The masks, bool (B, most rows, most columns)."""
        size = len(self.rows)
        count, tries, open_ = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64), np.arange(size)
        number, draws = 0, np.empty((0, 0, 0))
        while len(open_):
            if number % _CHUNK == 0:
                stream = random.stream(f"{name}/patches/block/{number // _CHUNK}")
                draws = random.uniform(keys_B, stream, 4 * _CHUNK).numpy().astype(np.float64).reshape(size, _CHUNK, 4)
            left = self.wanted[open_] - count[open_]
            most = left if self.masker.largest is None else np.minimum(left, self.masker.largest)
            new = self._put(self._try(draws[open_, number % _CHUNK], most, open_), most, open_)
            count[open_] += new
            tries[open_] = np.where(new > 0, 0, tries[open_] + 1)
            open_ = open_[(count[open_] < self.wanted[open_]) & (tries[open_] < TRIES)]
            number += 1
        return self.masks_BYX

    def _try(self, u_R4: np.ndarray, most: np.ndarray, open_: np.ndarray) -> _Try:
        least, span = np.minimum(self.masker.smallest, self.wanted[open_]), -2 * math.log(self.masker.aspect)
        area = least + (most - least) * u_R4[:, 0]
        aspect = np.exp((u_R4[:, 1] - 0.5) * span)
        height, width = (np.rint(np.sqrt(x)).astype(np.int64) for x in (area * aspect, area / aspect))
        rows, columns = self.rows[open_], self.columns[open_]
        fits = (height < rows) & (width < columns)
        top, left = (
            (np.maximum(side - own + 1, 1) * u_R4[:, i]).astype(np.int64) for side, own, i in ((rows, height, 2), (columns, width, 3))
        )
        return _Try(top, left, height, width, fits)

    def _put(self, tried: _Try, most: np.ndarray, open_: np.ndarray) -> np.ndarray:
        """Mask the rectangles that bring something new, but no more than ``most``. Returns the number of new patches, (R,)."""
        top, left, height, width = (x[:, None, None] for x in tried[:4])
        inside = (self.y >= top) & (self.y < top + height) & (self.x >= left) & (self.x < left + width)
        masks = self.masks_BYX[open_]
        new = tried.height * tried.width - (masks & inside).sum((1, 2))
        good = tried.fits & (new > 0) & (new <= most)
        self.masks_BYX[open_[good]] = (masks | inside)[good]
        return np.where(good, new, 0)


def patch_grids(sizes: Grids, patch_size: int) -> Grids:
    """(rows, columns) of patches of pictures of (height, width) pixels."""
    return tuple((height // patch_size, width // patch_size) for height, width in sizes)


def on_host(keys_B: Tensor, matched_B: Tensor | None) -> tuple[Tensor, np.ndarray | None]:
    """The keys and what matches, read from the device at once."""
    if matched_B is None:
        return keys_B.cpu(), None
    both_2B = torch.stack([keys_B, matched_B.to(torch.int64)]).cpu()
    return both_2B[0], both_2B[1].numpy().astype(bool)
