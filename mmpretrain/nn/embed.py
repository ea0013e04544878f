"""From token ids and pixels to packed states."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain import random
from mmpretrain.nn.dropout import Dropout
from mmpretrain.nn.grids import bilinear, cells, sincos, with_prefix
from mmpretrain.nn.layers import Conv2d, Embedding, Init, LayerNorm, fill
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.types import Pixels, Text

PATCHES = random.stream("nn/patches")


class TextEmbedder(nn.Module):
    """Word + position (+ segment) embedding, LayerNorm, dropout, over valid tokens only.

    Args:
        vocab_size: rows of the word table.
        width: of the states.
        positions: longest text.
        segments: rows of the segment table; 0 for none.
        norm_eps: of the LayerNorm; None for no norm (VisualBERT's comes after text and regions are joined).
        dropout: after the norm.
        std_words, std_positions: of the normal initialisation.
        frozen_first: rows 0 of the position and the segment table get no gradient (LXMERT's tables have a ``padding_idx`` there, so that
            the position of [CLS] and the first segment stay as they are).
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        positions: int,
        segments: int = 0,
        norm_eps: float | None = 1e-12,
        dropout: float = 0.0,
        std_words: float = 0.02,
        std_positions: float = 0.02,
        frozen_first: bool = False,
    ) -> None:
        super().__init__()
        self.vocab_size, self.width, self.max_positions = vocab_size, width, positions
        self.words = Embedding(vocab_size, width, Init("normal", std_words))
        self.positions = Embedding(positions, width, Init("normal", std_positions))
        self.segments = Embedding(segments, width, Init("normal", std_words)) if segments else None
        for table in (self.positions, self.segments) if frozen_first else ():
            if table is not None:
                table.padding_idx = 0
        self.norm = LayerNorm(width, eps=norm_eps) if norm_eps is not None else nn.Identity()
        self.dropout = Dropout(dropout) if dropout else nn.Identity()

    def segment_row(self, row: int) -> Tensor:
        """A row of the segment table, (D,), which a model may give to tokens that are no words.

        Raises:
            ValueError: there is no such row.
        """
        count = 0 if self.segments is None else self.segments.num_embeddings
        if self.segments is None or not 0 <= row < count:
            raise ValueError(f"the model needs row {row} of the text's segment table, which has {count}: set segments={row + 1} or more")
        return self.segments.weight[row]

    def forward(self, text: Text) -> Ragged:
        """Packed states (N, D) of the valid tokens.

        Raises:
            ValueError: a text is empty or longer than the position table; ``text.delta_ND`` is not one row of the width per valid token.
        """
        layout = Layout(text.lengths)
        if layout.max_len > self.max_positions:
            raise Misfit(f"a text of {layout.max_len} tokens does not fit {self.max_positions} positions: lower data.max_tokens")
        if min(layout.lengths, default=0) < 1:
            raise ValueError("every text needs at least one token ([CLS] or start of text)")
        ids_N = layout.pack(text.ids_BT)
        x_ND = self.words(ids_N)
        if text.delta_ND is not None:
            if text.delta_ND.shape != x_ND.shape:
                raise ValueError(f"text.delta_ND must be {tuple(x_ND.shape)}, valid tokens x width, got {tuple(text.delta_ND.shape)}")
            x_ND = x_ND + text.delta_ND.to(x_ND.dtype)
        if self.segments is not None:
            segment_N = torch.zeros_like(ids_N) if text.segments_BT is None else layout.pack(text.segments_BT)
            x_ND = x_ND + self.segments(segment_N)
        x_ND = x_ND + self.positions(layout.slot_N(ids_N.device))
        return Ragged(self.dropout(self.norm(x_ND)), layout)


def sampled(layout: Layout, limit: int, draw_keys_B: Tensor | None, stream: int) -> Tensor:
    """Packed rows that a random choice of at most ``limit`` tokens of each sample keeps, without replacement, in their order: int64 (N',).

    Nothing waits for the device.

    Args:
        layout: of all tokens.
        draw_keys_B: keys of the draws.
        stream: of random numbers.

    Raises:
        ValueError: there are no keys.
    """
    if draw_keys_B is None:
        raise ValueError("sampling patches or pixels needs the draw keys of the batch")
    device = draw_keys_B.device
    draws_BV = random.uniform(draw_keys_B, stream, layout.max_len)
    draws_BV = draws_BV.masked_fill(~layout.mask_BL(device), 2.0)
    kept = Layout(tuple(min(n, limit) for n in layout.lengths))
    # stable, so that equal draws cannot bring two devices to different tokens; short samples sort their padding last
    first_BK = draws_BV.argsort(dim=1, stable=True)[:, :limit]
    in_kept_BK = kept.mask_BL(device)[:, :limit]
    slots_BK = first_BK.masked_fill(~in_kept_BK, layout.max_len).sort(dim=1).values
    return kept.pack(slots_BK) + layout.first_B(device).index_select(0, kept.sample_N(device))


class PatchEmbedder(nn.Module):
    """Linear projection of patches, a class token, and a learned position grid interpolated to the size of each image.

    Real patches are those within ``Pixels.sizes``: padding is cut out before the projection, and so are patches that sampling drops.

    Args:
        width: of the states.
        patch_size: side of a patch in pixels.
        grid: side of the learned position table, in patches.
        patch_limit: most patches per image while training, drawn without replacement; -1 for no limit (ViLT section 3.2: 200).
        dropout: after the position embedding.
        bias: of the projection.
        init: of the projection.
        std: of the class token and the positions.
        position_init: ``trunc_normal``, or ``sincos``: the learned table starts as sines and cosines of row and column with this ``std``,
            so that neighbouring patches are alike from the first step on.
        positions: false for no position table (BEiT, whose attention knows where patches are); ``grid`` is not read then.
        mask_token: a learned embedding stands for the patches in ``Pixels.masked_N``, before the position is added (BEiT, arXiv 2106.08254
            section 2.3).

    Raises:
        ValueError: an unknown ``position_init``, or a width that sines and cosines of two axes do not divide by 4.
    """

    def __init__(
        self,
        width: int,
        patch_size: int,
        grid: int,
        patch_limit: int = -1,
        dropout: float = 0.0,
        bias: bool = True,
        init: str = "trunc_normal",
        std: float = 0.02,
        position_init: str = "trunc_normal",
        positions: bool = True,
        mask_token: bool = False,
    ) -> None:
        super().__init__()
        if position_init not in ("trunc_normal", "sincos"):
            raise ValueError(f"position_init={position_init!r}; choose trunc_normal or sincos")
        if position_init == "sincos" and width % 4:
            raise ValueError(f"position_init=sincos needs a width that is a multiple of 4, got {width}")
        self.width, self.patch_size, self.grid, self.patch_limit, self.std = width, patch_size, grid, patch_limit, std
        self.position_init, self.init = position_init, init
        self.projection = Conv2d(3, width, patch_size, stride=patch_size, bias=bias, init=Init(init))
        self.class_token = nn.Parameter(torch.empty(1, width))
        self.class_position = nn.Parameter(torch.empty(1, width)) if positions else None
        self.positions = nn.Parameter(torch.empty(grid * grid, width)) if positions else None
        self.mask_token = nn.Parameter(torch.empty(1, width)) if mask_token else None
        self.dropout = Dropout(dropout) if dropout else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Class token, its position, the position grid and the mask token: N(0, std), cut at 2, or at ``std`` where the projection is; or
        the grid as ``position_init`` says."""
        kind = self.init if self.init == "trunc_normal_std" else "trunc_normal"
        for parameter in (self.class_token, self.class_position, self.positions, self.mask_token):
            if parameter is not None:
                fill(parameter, Init(kind, self.std))
        if self.position_init == "sincos" and self.positions is not None:
            with torch.no_grad():
                self.positions.copy_(sincos(self.grid, self.width) * (self.std * 2**0.5))

    def grids(self, image: Pixels) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of patches of each image.

        Raises:
            ValueError: a side is not a positive multiple of the patch size.
        """
        p = self.patch_size
        for i, (h, w) in enumerate(image.sizes):
            if h < p or w < p or h % p or w % p:
                found = f"image {i} of the batch is {h} x {w} pixels, no multiples of patch_size={p}"
                raise Misfit(f"{found}: set data.image.multiple={p} (mode vilt) or data.image.size to a multiple of it")
        return tuple((h // p, w // p) for h, w in image.sizes)

    def forward(self, image: Pixels, draw_keys_B: Tensor | None = None) -> Ragged:
        """Packed states (N, D): per image the class token, then its kept patches in raster order.

        Args:
            image: pixels with their sizes.
            draw_keys_B: keys of the patch sampling; read only while training with a limit that some image exceeds.

        Raises:
            ValueError: patches are masked, and there is no mask token, or sampling might drop them; or not one flag per patch.
        """
        grids = self.grids(image)
        device = self.projection.weight.device
        counts = tuple(h * w for h, w in grids)
        patches = Layout(counts)
        sampling = self.training and 0 < self.patch_limit < patches.max_len
        keep_N = sampled(patches, self.patch_limit, draw_keys_B, PATCHES) if sampling else None
        if keep_N is not None:
            patches = Layout(tuple(min(n, self.patch_limit) for n in counts))
        x_ND = self._project(image, grids, keep_N)
        if image.masked_N is not None:
            x_ND = self._masked(x_ND, image.masked_N)
        if image.delta_ND is not None:
            delta_ND = image.delta_ND if keep_N is None else image.delta_ND.index_select(0, keep_N)
            x_ND = x_ND + delta_ND.to(x_ND.dtype)
        if self.positions is not None:
            if keep_N is None and all(g == (self.grid, self.grid) for g in grids):
                x_ND = (x_ND.view(len(grids), -1, self.width) + self.positions).flatten(0, 1)
            else:
                x_ND = x_ND + self._positions(self.positions, grids, keep_N, device)
        # under autocast the projected patches may be bf16; the token is fp32, and so are the states then
        prefix_1D = self.class_token if self.class_position is None else self.class_token + self.class_position
        layout = Layout(tuple(n + 1 for n in patches.lengths))
        if layout.uniform:
            x_BVD = x_ND.view(layout.size, -1, self.width)
            x_ND = torch.cat([prefix_1D.expand(layout.size, 1, -1), x_BVD], dim=1).flatten(0, 1)
        else:
            x_ND = torch.cat([prefix_1D, x_ND]).index_select(0, with_prefix(layout).to(device))
        return Ragged(self.dropout(x_ND), layout)

    def _project(self, image: Pixels, grids: tuple[tuple[int, int], ...], keep_N: Tensor | None) -> Tensor:
        """Projected real patches (N, D). Cutting happens on the stored type (uint8): normalisation is done on what is kept."""
        p, pixels = self.patch_size, image.pixels_BCHW
        b, c, height, width = pixels.shape
        rows, columns = height // p, width // p
        cut = pixels[:, :, : rows * p, : columns * p].view(b, c, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        if keep_N is None and all(g == (rows, columns) for g in grids):
            x_NP = cut.reshape(-1, c * p * p)
        else:
            sample, row, column = (torch.from_numpy(t).to(pixels.device) for t in cells(grids))
            if keep_N is not None:
                sample, row, column = (t.index_select(0, keep_N) for t in (sample, row, column))
            x_NP = cut[sample, row, column].view(-1, c * p * p)
        weight = self.projection.weight
        x_NP = Pixels(x_NP.view(-1, 3, p, p), (), image.mean, image.std).floats(weight.dtype).view(-1, c * p * p)
        return F.linear(x_NP, weight.flatten(1), self.projection.bias)

    def _masked(self, x_ND: Tensor, masked_N: Tensor) -> Tensor:
        """The projected patches with the mask token in the place of the masked ones."""
        if self.mask_token is None:
            raise ValueError("patches are masked, and the model has no embedding for them: set mask_token: true of its PatchEmbedder")
        if self.training and self.patch_limit > 0:
            limit = f"patch_limit={self.patch_limit} drops patches at random"
            raise Misfit(f"{limit}, masked ones too, which are to be predicted: set patch_limit: -1 of the PatchEmbedder")
        if masked_N.shape != x_ND.shape[:1]:
            raise ValueError(f"image.masked_N must have one flag for each of {x_ND.shape[0]} patches, got {tuple(masked_N.shape)}")
        return torch.where(masked_N[:, None], self.mask_token.to(x_ND.dtype), x_ND)

    def _positions(self, table_GD: Tensor, grids: tuple[tuple[int, int], ...], keep_N: Tensor | None, device: torch.device) -> Tensor:
        """Positions of the kept patches (N, D), interpolated to the grid of each image."""
        tables = [bilinear(h, w, self.grid) for h, w in grids]
        rows_N4 = torch.from_numpy(np.concatenate([t[0] for t in tables])).to(device)
        weights_N4 = torch.from_numpy(np.concatenate([t[1] for t in tables])).to(device)
        if keep_N is not None:
            rows_N4, weights_N4 = rows_N4.index_select(0, keep_N), weights_N4.index_select(0, keep_N)
        return F.embedding_bag(rows_N4, table_GD, mode="sum", per_sample_weights=weights_N4.to(table_GD.dtype))
