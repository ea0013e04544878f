"""Pixels of a convolutional map as tokens (Pixel-BERT, arXiv 2004.00849, sections 3.1 and 3.2.3)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain import random
from mmpretrain.nn.cnn import ResNet, by_size, cut
from mmpretrain.nn.dropout import Dropout
from mmpretrain.nn.embed import sampled
from mmpretrain.nn.layers import Conv2d, Init, Linear, fill
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.types import Pixels

PIXELS = random.stream("nn/pixels")
STRIDE = 64  # of the network, 32, times the 2x2 pooling


class PixelEmbedder(nn.Module):
    """Convolutional network, 2x2 max-pooling, projection of every cell, one vector that all of them share. No position and no norm.

    Args:
        cnn: trained along.
        width: of the states.
        limit: most cells per picture in training, drawn without replacement, kept in raster order; -1: all, as in evaluation.
        projection: ``linear``: of the pooled cells, which the paper leaves open; ``conv3x3``: a 3x3 convolution before the pooling and ReLU
            after it, as reimplementations have it. Neither has a bias: the shared vector is one.
        dropout: after everything.
        std: of projection and shared vector.

    Raises:
        ValueError: an unknown projection.
    """

    def __init__(
        self,
        cnn: ResNet,
        width: int,
        limit: int = 100,
        projection: Literal["linear", "conv3x3"] = "linear",
        dropout: float = 0.0,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        if projection not in ("linear", "conv3x3"):
            raise ValueError(f"PixelEmbedder: projection={projection!r}; choose linear or conv3x3")
        self.cnn, self.width, self.limit, self.std, self.patch_size = cnn, width, limit, std, STRIDE
        n_in, init = cnn.channels[-1], Init("normal", std)
        self.on_map = projection == "conv3x3"
        self.projection = Conv2d(n_in, width, 3, padding=1, init=init) if self.on_map else Linear(n_in, width, bias=False, init=init)
        self.semantic = nn.Parameter(torch.empty(1, width))
        self.dropout = Dropout(dropout) if dropout else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The shared vector: N(0, std)."""
        fill(self.semantic, Init("normal", self.std))

    def grids(self, image: Pixels) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of cells of each picture.

        Raises:
            ValueError: a side is no multiple of 32, or below 64. (Half a cell at the end of a side of odd multiples is left out.)
        """
        for i, (h, w) in enumerate(image.sizes):
            if min(h, w) < STRIDE or h % 32 or w % 32:
                raise Misfit(f"image {i} of the batch is {h} x {w} pixels; set data.image.multiple: 64, and size to at least 64")
        return tuple((h // STRIDE, w // STRIDE) for h, w in image.sizes)

    def forward(self, image: Pixels, draw_keys_B: Tensor | None = None) -> Ragged:
        """Packed states (N, D): the kept cells of each picture in raster order.

        Args:
            draw_keys_B: keys of the sampling; read only while training with a limit that some picture exceeds.
        """
        cells = Layout(tuple(h * w for h, w in self.grids(image)))
        x_NC = self._cells(image, cells)
        keep_N, kept = None, cells
        if self.training and 0 < self.limit < cells.max_len:
            keep_N = sampled(cells, self.limit, draw_keys_B, PIXELS)
            kept = Layout(tuple(min(n, self.limit) for n in cells.lengths))
            x_NC = x_NC.index_select(0, keep_N)
        x_ND = x_NC if self.on_map else self.projection(x_NC)
        if image.delta_ND is not None:
            x_ND = x_ND + (image.delta_ND if keep_N is None else image.delta_ND.index_select(0, keep_N)).to(x_ND.dtype)
        return Ragged(self.dropout(x_ND + self.semantic), kept)

    def _cells(self, image: Pixels, cells: Layout) -> Tensor:
        """All cells of all pictures, (N, C); (N, D) where the projection works on maps. One run of the network for each size."""
        dtype, rows, order = self.cnn.conv1.weight.dtype, [], np.empty(cells.total, dtype=np.int64)
        done = 0
        for size, pictures in by_size(image.sizes).items():
            x_BCHW = self.cnn(cut(image, pictures, size, dtype))
            x_BCHW = F.max_pool2d(self.projection(x_BCHW) if self.on_map else x_BCHW, 2)
            x_BCHW = F.relu(x_BCHW) if self.on_map else x_BCHW
            rows.append(x_BCHW.permute(0, 2, 3, 1).flatten(0, 2))
            count = cells.lengths[pictures[0]]
            for n, i in enumerate(pictures):
                order[cells.starts[i] : cells.starts[i] + count] = np.arange(done + n * count, done + (n + 1) * count)
            done += len(pictures) * count
        if len(rows) == 1:
            return rows[0]
        return torch.cat(rows).index_select(0, torch.from_numpy(order).to(rows[0].device, non_blocking=True))
