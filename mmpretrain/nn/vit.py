"""The transformer of BEiT (arXiv 2106.08254, released code): pre-norm blocks with relative positions, scaled branches, stochastic depth.

With ``relative: none, layer_scale: null, key_bias: true`` it is that of ViT (arXiv 2010.11929).
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain import random
from mmpretrain.nn.attention import BACKENDS, Attention, Plan, kernel_dtype, plan
from mmpretrain.nn.blocks import MLP, block_inits
from mmpretrain.nn.grids import relative
from mmpretrain.nn.layers import Init, LayerNorm, fill, fill_bias
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout, Ragged

RelativeKind = Literal["shared", "block", "none"]
DROP_PATH = random.stream("nn/drop_path")


class QueryValueBias(nn.Module):
    """One fused projection to queries, keys and values (3 D) in which keys have no bias: it would add the same to all scores of a query."""

    def __init__(self, width: int, init: Init) -> None:
        super().__init__()
        self.init = init
        self.weight = nn.Parameter(torch.empty(3 * width, width))
        self.query_bias = nn.Parameter(torch.empty(width))
        self.value_bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        fill(self.weight, self.init)
        for bias in (self.query_bias, self.value_bias):
            fill_bias(bias, self.weight, self.init)

    def forward(self, x_ND: Tensor) -> Tensor:
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        return F.linear(x_ND, self.weight, bias)


class RelativeBias(nn.Module):
    """What is added to the score of a pair of tokens, for each head, by where the two lie: (2 grid - 1)^2 + 3 rows that start at zero.

    Args:
        grid: side of the largest grid of patches.
        heads: of the attention.
    """

    def __init__(self, grid: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty((2 * grid - 1) ** 2 + 3, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.table)

    def forward(self, index_BLL: Tensor) -> Tensor:
        """Rows of the table (B, L, L), B may be 1 -> (B, heads, L, L)."""
        return F.embedding(index_BLL, self.table).permute(0, 3, 1, 2).contiguous()


class Form(NamedTuple):
    """What all blocks of a stack have in common."""

    width: int
    heads: int
    hidden: int
    activation: str
    eps: float
    layer_scale: float | None
    key_bias: bool


class VisionBlock(nn.Module):
    """x + keep * scale * attention(norm(x)), then the same with the MLP.

    Args:
        form: sizes.
        inits: of (qkv, attention output, MLP up, MLP down).
        grid: side of the largest grid, for relative positions of its own; None: it has none.
    """

    def __init__(self, form: Form, inits: tuple[Init, Init, Init, Init], grid: int | None) -> None:
        super().__init__()
        self.norm1 = LayerNorm(form.width, eps=form.eps)
        self.attention = Attention(form.width, form.heads, inits[0], inits[1])
        if not form.key_bias:
            self.attention.qkv = QueryValueBias(form.width, inits[0])  # type: ignore[assignment]  # gives the same three
        self.relative = RelativeBias(grid, form.heads) if grid is not None else None
        self.norm2 = LayerNorm(form.width, eps=form.eps)
        self.mlp = MLP(form.width, form.hidden, form.activation, 0.0, inits[2], inits[3])
        self.layer_scale = form.layer_scale
        self.scale1 = nn.Parameter(torch.empty(form.width)) if form.layer_scale is not None else None
        self.scale2 = nn.Parameter(torch.empty(form.width)) if form.layer_scale is not None else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every channel of both branches starts with the same factor."""
        for scale in (self.scale1, self.scale2):
            if scale is not None:
                nn.init.constant_(scale, self.layer_scale)

    def forward(self, x_ND: Tensor, plan: Plan, index_BLL: Tensor | None = None, keep_N2: Tensor | None = None) -> Tensor:
        """States (N, D) -> (N, D).

        Args:
            x_ND: packed states.
            plan: of the attention.
            index_BLL: rows of the block's own table of relative positions.
            keep_N2: factors of the two branches of each token (stochastic depth); None: 1.
        """
        if self.relative is not None:
            assert index_BLL is not None
            plan = plan._replace(bias_BHLL=self.relative(index_BLL))
        x_ND = x_ND + self._scaled(self.attention(self.norm1(x_ND), plan), self.scale1, keep_N2, 0)
        return x_ND + self._scaled(self.mlp(self.norm2(x_ND)), self.scale2, keep_N2, 1)

    @staticmethod
    def _scaled(y_ND: Tensor, scale_D: Tensor | None, keep_N2: Tensor | None, branch: int) -> Tensor:
        y_ND = y_ND if scale_D is None else y_ND * scale_D
        return y_ND if keep_N2 is None else y_ND * keep_N2[:, branch, None]


class VisionTransformer(nn.Module):
    """A stack of pre-norm blocks with a final norm over [class token, patches] of pictures.

    Args:
        width: of the states.
        depth: number of blocks.
        heads: must divide ``width``.
        grid: side of the largest grid of patches whose relative positions are known.
        relative: whose table of relative positions a block reads: ``shared``: one for all (BEiT's pre-training); ``block``: its own (its
            fine-tuning); ``none``.
        layer_scale: what the factors of the branches' channels start from: 0.1 in BEiT-base, 1e-5 in BEiT-large; None: no such factors.
        drop_path: chance that a sample skips a branch of the last block in training, rising from 0 at the first in equal steps (stochastic
            depth; 0.1 in BEiT). The draws are keyed by the sample.
        key_bias: keys have a bias (ViT); BEiT's have none.
        mlp_ratio: hidden width of the MLP over ``width``.
        activation: ``gelu`` or ``quick_gelu``.
        eps: of every LayerNorm.
        attention: ``auto``, ``sdpa``, ``varlen`` (without relative positions) or ``eager``.
        init: ``beit``: normal of 0.02 cut at 0.02, the last matrix of each branch of block l divided by sqrt(2 l); or as
            ``Transformer`` has it.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        grid: int = 14,
        relative: RelativeKind = "shared",
        layer_scale: float | None = 0.1,
        drop_path: float = 0.0,
        key_bias: bool = False,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        eps: float = 1e-6,
        attention: str = "auto",
        init: str = "beit",
    ) -> None:
        super().__init__()
        if relative not in get_args(RelativeKind) or attention not in BACKENDS:
            known = f"{', '.join(get_args(RelativeKind))}, and of attention {', '.join(BACKENDS)}"
            raise ValueError(f"relative={relative!r}, attention={attention!r}; choices of relative are {known}")
        if not 0 <= drop_path < 1 or grid < 1 or depth < 1:
            raise ValueError(f"drop_path={drop_path} must be in [0, 1), grid={grid} and depth={depth} at least 1")
        self.form = Form(width, heads, round(width * mlp_ratio), activation, eps, layer_scale, key_bias)
        self.width, self.depth, self.grid, self.attention, self.drop_path = width, depth, grid, attention, drop_path
        self.kind = relative
        self.relative = RelativeBias(grid, heads) if relative == "shared" else None
        own = grid if relative == "block" else None
        self.blocks = nn.ModuleList([VisionBlock(self.form, _inits(init, width, depth, i), own) for i in range(depth)])
        self.norm = LayerNorm(width, eps=eps)

    def forward(self, x: Ragged, grids: tuple[tuple[int, int], ...], draw_keys_B: Tensor | None = None) -> Ragged:
        """States after the final norm.

        Args:
            x: packed states; of each picture the class token, then its patches in raster order.
            grids: (rows, columns) of patches of each picture; read with relative positions only.
            draw_keys_B: keys of the draws of stochastic depth, read in training only.

        Raises:
            ValueError: a picture has more patches on a side than relative positions are known of, or lacks some; there are no keys.
        """
        device, biased = x.x_ND.device, self.kind != "none"
        dtype, head = kernel_dtype(x.x_ND), self.width // self.form.heads
        table = plan(x.layout, device, self.attention, dtype=dtype, width=self.width, biased=biased, head=head)
        index_BLL = self._index(x.layout, grids, device) if biased else None
        if self.relative is not None and index_BLL is not None:
            table, index_BLL = table._replace(bias_BHLL=self.relative(index_BLL)), None
        keep_KN2 = self._keep(x.layout, draw_keys_B)
        h_ND = x.x_ND
        for i, block in enumerate(self.blocks):
            h_ND = block(h_ND, table, index_BLL, None if keep_KN2 is None else keep_KN2[i])
        return Ragged(self.norm(h_ND), x.layout)

    def _index(self, layout: Layout, grids: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
        for (rows, columns), length in set(zip(grids, layout.lengths, strict=True)):
            picture = f"a picture of {rows} x {columns} patches"
            if max(rows, columns) > self.grid:
                known = f"the relative positions of {self.grid} x {self.grid}"
                raise Misfit(f"{picture} is larger than {known}: take smaller pictures (data.image.size) or a larger grid")
            if length != rows * columns + 1:
                raise ValueError(f"relative positions need a class token and all patches; {picture} has {length} tokens")
        return _padded_index(grids[:1] if len(set(grids)) == 1 else grids, self.grid, device)

    def _keep(self, layout: Layout, draw_keys_B: Tensor | None) -> Tensor | None:
        """(depth, N, 2): for each branch of each block 0 where a sample skips it, else 1 / (1 - rate); None: nothing is skipped."""
        if not self.training or not self.drop_path:
            return None
        if draw_keys_B is None:
            raise ValueError("stochastic depth needs the draw keys of the batch")
        device = draw_keys_B.device
        rate_K11 = torch.linspace(0, self.drop_path, self.depth, device=device)[:, None, None]
        draw_KB2 = random.uniform(draw_keys_B, DROP_PATH, 2 * self.depth).view(-1, self.depth, 2).transpose(0, 1)
        keep_KB2 = (draw_KB2 >= rate_K11) / (1 - rate_K11)
        return keep_KB2.index_select(1, layout.sample_N(device))


def _inits(init: str, width: int, depth: int, number: int) -> tuple[Init, Init, Init, Init]:
    """Initialisations of block ``number`` (from 0)."""
    if init != "beit":
        return block_inits(init, width, depth)
    plain, last = Init("trunc_normal_std"), Init("trunc_normal_std", 0.02 / math.sqrt(2 * (number + 1)))
    return plain, last, plain, last


@functools.lru_cache(maxsize=8)
def _padded_index(grids: tuple[tuple[int, int], ...], grid: int, device: torch.device) -> Tensor:
    """Rows of the table for each pair of tokens of each picture: int64 (B, L, L), 0 where there is padding, which is masked."""
    longest = 1 + max(rows * columns for rows, columns in grids)
    index = np.zeros((len(grids), longest, longest), dtype=np.int64)
    for own, (rows, columns) in zip(index, grids, strict=True):
        size = 1 + rows * columns
        own[:size, :size] = relative(rows, columns, grid)
    with torch.inference_mode(False):  # what is kept must serve training too
        return torch.from_numpy(index).to(device)
