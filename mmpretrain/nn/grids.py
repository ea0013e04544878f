"""Tables over grids of patches: where cells lie in other grids, and how far they are from each other."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from mmpretrain.nn.ragged import Layout


@functools.lru_cache(maxsize=4096)
def bilinear(height: int, width: int, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the cells of a (height, width) grid lie in a (grid, grid) table: bilinear, align_corners=True.

    Returns:
        rows int64 (height * width, 4) and weights float32 (height * width, 4), raster order; the weights of a cell sum to 1.
    """

    def axis(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        step = np.float32(grid - 1) / np.float32(n - 1) if n > 1 else np.float32(0)
        at = np.arange(n, dtype=np.float32) * step
        low = np.minimum(at.astype(np.int64), grid - 1)
        return low, np.minimum(low + 1, grid - 1), (at - low.astype(np.float32)).astype(np.float32)

    y0, y1, fy = axis(height)
    x0, x1, fx = axis(width)
    one = np.float32(1)
    rows = [y[:, None] * grid + x[None, :] for y in (y0, y1) for x in (x0, x1)]
    weights = [wy[:, None] * wx[None, :] for wy in (one - fy, fy) for wx in (one - fx, fx)]
    return np.stack(rows, -1).reshape(-1, 4), np.stack(weights, -1).reshape(-1, 4)


def sincos(grid: int, width: int) -> Tensor:
    """Sines and cosines of the row and of the column of each cell of a (grid, grid) table, float32 (grid * grid, width).

    Wave lengths run from 4 cells to 4 grids, so that neighbours are alike and opposite ends are not.
    """
    waves = torch.logspace(0, 1, width // 4, base=float(grid)) * 4
    angles_GF = torch.arange(grid, dtype=torch.float32)[:, None] * (2 * math.pi / waves)
    axis_GF = torch.cat([angles_GF.sin(), angles_GF.cos()], dim=1)
    rows = axis_GF[:, None].expand(-1, grid, -1)
    columns = axis_GF[None, :].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


@functools.lru_cache(maxsize=64)
def cells(grids: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample, row and column of every real patch of a batch, raster order: three int64 (N,)."""
    sample = np.repeat(np.arange(len(grids), dtype=np.int64), [h * w for h, w in grids])
    row = np.concatenate([np.repeat(np.arange(h, dtype=np.int64), w) for h, w in grids])
    column = np.concatenate([np.tile(np.arange(w, dtype=np.int64), h) for h, w in grids])
    return sample, row, column


def with_prefix(layout: Layout) -> Tensor:
    """For each row of ``layout`` (one prefix token, then patches): 0 for the prefix, 1 + packed patch otherwise."""
    index = np.arange(layout.total, dtype=np.int64) - np.repeat(np.arange(layout.size, dtype=np.int64), layout.lengths)
    index[layout.starts[:-1]] = 0
    return torch.from_numpy(index)


@functools.lru_cache(maxsize=64)
def relative(height: int, width: int, grid: int) -> np.ndarray:
    """Row of a table of relative positions for each pair of tokens of a picture, [class token, patches in raster order] (BEiT).

    The table has ``(2 * grid - 1) ** 2`` rows for the offsets between patches, row offset by column offset, and three behind them: of the
    class token to a patch, of a patch to the class token, of the class token to itself.

    Returns:
        int64 (1 + height * width, 1 + height * width); queries are rows.
    """
    side, size = 2 * grid - 1, height * width + 1
    row, column = np.divmod(np.arange(height * width, dtype=np.int64), width)
    index = np.full((size, size), side**2, dtype=np.int64)
    index[1:, 1:] = (row[:, None] - row[None, :] + grid - 1) * side + column[:, None] - column[None, :] + grid - 1
    index[1:, 0] = side**2 + 1
    index[0, 0] = side**2 + 2
    return index
