"""Multi-head self-attention over packed rows.

Three ways to the same numbers: ``sdpa`` pads the batch to its own maximum for the attention alone, ``varlen`` runs the variable-length
kernel of CUDA on the packed rows, ``eager`` spells the softmax out (parity tests). ``auto`` takes ``varlen`` where it can, else ``sdpa``.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain.nn.layers import Init, Linear
from mmpretrain.nn.ragged import Layout

BACKENDS = ("auto", "sdpa", "varlen", "eager")
_HAS_VARLEN = importlib.util.find_spec("torch.nn.attention.varlen") is not None


class Plan(NamedTuple):
    """What every block of a stack needs to know of a layout: tensors and a few ints only, so that a compiled block is reused."""

    backend: str
    causal: bool
    size: int  # samples
    max_len: int
    flat_N: Tensor | None  # row of each token in the padded (B * max_len) grid; None: all lengths are equal
    mask_BL: Tensor | None  # True where a slot holds a token; None: all do
    cumulative_B1: Tensor | None  # int32, for varlen only
    one_B1: Tensor | None  # int32 0..B: cumulative lengths of one query per sample, for varlen only
    pairs_BLL: Tensor | None = None  # True where a query row may look at a key column, padding and causality included


def plan(
    layout: Layout,
    device: torch.device,
    backend: str = "auto",
    causal: bool = False,
    dtype: torch.dtype = torch.float32,
    mask: Tensor | None = None,
    dropping: bool = False,
) -> Plan:
    """Tables of one forward.

    Args:
        dtype: of queries and keys as the kernel will see them (the varlen kernel takes fp16 and bf16 only).
        mask: bool (B, max_len, max_len) over the padded grid: query row i may look at key column j. Padding and causality are added to it;
            every token must be left at least one key.
        dropping: attention probabilities are dropped in this forward.

    Raises:
        ValueError: varlen was asked for where it cannot run, or the mask has another shape or type.
    """
    can = _HAS_VARLEN and device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    if backend == "varlen" and (mask is not None or dropping):
        what = "a mask of query and key pairs" if mask is not None else "attention_dropout in training"
        raise ValueError(f"attention=varlen cannot do {what}: use auto, which takes sdpa for it")
    if backend == "varlen" and not can:
        raise ValueError(f"attention=varlen needs CUDA, fp16 or bf16 and torch.nn.attention.varlen; got {device}, {dtype}: use auto")
    chosen = ("varlen" if can and mask is None and not dropping else "sdpa") if backend == "auto" else backend
    if chosen == "varlen":
        one_B1 = torch.arange(layout.size + 1, dtype=torch.int32, device=device)
        return Plan(chosen, causal, layout.size, layout.max_len, None, None, layout.cumulative_B1(device), one_B1)
    pairs_BLL = None if mask is None else _pairs(layout, mask, causal, device)
    if layout.uniform:
        return Plan(chosen, causal, layout.size, layout.max_len, None, None, None, None, pairs_BLL)
    return Plan(chosen, causal, layout.size, layout.max_len, layout.flat_N(device), layout.mask_BL(device), None, None, pairs_BLL)


def _pairs(layout: Layout, mask: Tensor, causal: bool, device: torch.device) -> Tensor:
    """The mask of pairs with padding and causality in it; queries that are padding see every slot, so that no softmax is empty."""
    shape = (layout.size, layout.max_len, layout.max_len)
    if tuple(mask.shape) != shape or mask.dtype != torch.bool:
        got = f"{mask.dtype} {tuple(mask.shape)}"
        raise ValueError(f"an attention mask of pairs must be torch.bool {shape} (samples, longest, longest), got {got}")
    if causal:
        mask = mask.tril()
    valid_BL = layout.mask_BL(device)
    return mask & valid_BL[:, None, :] | ~valid_BL[:, :, None]


def kernel_dtype(x: Tensor) -> torch.dtype:
    """The type that a linear layer will give for ``x``: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def grid(x_ND: Tensor, plan: Plan) -> Tensor:
    """Packed rows (N, F) -> padded rows (B * max_len, F); the empty ones are zero."""
    if plan.flat_N is None:
        return x_ND
    return x_ND.new_zeros(plan.size * plan.max_len, x_ND.shape[1]).index_add_(0, plan.flat_N, x_ND)


def dense(q_BHQK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, plan: Plan, causal: bool, pairs_BQL: Tensor | None, dropout: float) -> Tensor:
    """Attention on a padded batch: (B, H, Q, K). ``pairs_BQL`` stands for padding and causality where it is given."""
    mask = None if plan.mask_BL is None else plan.mask_BL[:, None, None, :]
    if pairs_BQL is not None:
        mask, causal = pairs_BQL[:, None], False
    if plan.backend != "eager":
        # right-padded and causal: a valid query sees valid keys only, and padded queries are dropped
        mask = None if causal else mask
        return F.scaled_dot_product_attention(q_BHQK, k_BHLK, v_BHLK, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    scores = (q_BHQK @ k_BHLK.transpose(-1, -2)) / math.sqrt(q_BHQK.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return F.dropout(scores.softmax(-1), dropout) @ v_BHLK if dropout else scores.softmax(-1) @ v_BHLK


class Attention(nn.Module):
    """Self-attention with one fused projection.

    Args:
        width: of the states.
        heads: must divide ``width``.
        init_qkv: initialisation of the fused projection, ``init_out`` of the output projection.
        dropout: of the attention probabilities, in training.

    Raises:
        ValueError: ``heads`` does not divide ``width``.
    """

    def __init__(
        self, width: int, heads: int, init_qkv: Init = Init(), init_out: Init = Init(), dropout: float = 0.0  # noqa: B008
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}")
        self.heads, self.dropout = heads, dropout
        self.qkv = Linear(width, 3 * width, init=init_qkv)
        self.out = Linear(width, width, init=init_out)

    def forward(self, x_ND: Tensor, plan: Plan, keep_B: Tensor | None = None) -> Tensor:
        """States (N, D) -> (N, D), or (B, D) when ``keep_B`` names the one packed row per sample whose output is wanted."""
        width = x_ND.shape[1]
        if keep_B is not None:
            return self.out(self._kept(x_ND, plan, keep_B))
        qkv_NF = self.qkv(x_ND)
        if plan.backend == "varlen":
            return self.out(self._varlen(qkv_NF, plan))
        shape = (plan.size, plan.max_len, 3, self.heads, width // self.heads)
        q, k, v = grid(qkv_NF, plan).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        y = dense(q, k, v, plan, plan.causal, plan.pairs_BLL, self._rate).transpose(1, 2).reshape(plan.size * plan.max_len, width)
        return self.out(y if plan.flat_N is None else y.index_select(0, plan.flat_N))

    def _kept(self, x_ND: Tensor, plan: Plan, keep_B: Tensor) -> Tensor:
        """Attention of one row per sample, (B, D): keys and values of every row, queries of the kept ones alone."""
        width = x_ND.shape[1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q_BD = F.linear(x_ND.index_select(0, keep_B), weight[:width], bias[:width])
        kv_NF = F.linear(x_ND, weight[width:], bias[width:])
        if plan.backend == "varlen":
            return self._varlen_kept(q_BD, kv_NF, plan)
        shape = (plan.size, plan.max_len, 2, self.heads, width // self.heads)
        k, v = grid(kv_NF, plan).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        pairs_B1L = None
        if plan.pairs_BLL is not None:
            flat_B = keep_B if plan.flat_N is None else plan.flat_N.index_select(0, keep_B)
            pairs_B1L = plan.pairs_BLL.flatten(0, 1).index_select(0, flat_B)[:, None]
        y = dense(q_BD.reshape(plan.size, 1, self.heads, -1).transpose(1, 2), k, v, plan, False, pairs_B1L, self._rate)
        return y.transpose(1, 2).reshape(plan.size, width)

    @property
    def _rate(self) -> float:
        return self.dropout if self.training else 0.0

    def _varlen(self, qkv_NF: Tensor, plan: Plan) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = qkv_NF.view(qkv_NF.shape[0], 3, self.heads, -1).unbind(1)
        window = (-1, 0) if plan.causal else (-1, -1)
        cumulative = plan.cumulative_B1
        y: Any = varlen_attn(q, k, v, cumulative, cumulative, plan.max_len, plan.max_len, window_size=window)
        return y.flatten(1)

    def _varlen_kept(self, q_BD: Tensor, kv_NF: Tensor, plan: Plan) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        k, v = kv_NF.view(kv_NF.shape[0], 2, self.heads, -1).unbind(1)
        q = q_BD.view(q_BD.shape[0], self.heads, -1)
        y: Any = varlen_attn(q, k, v, plan.one_B1, plan.cumulative_B1, 1, plan.max_len, window_size=(-1, -1))
        return y.flatten(1)
