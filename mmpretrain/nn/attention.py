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


def plan(layout: Layout, device: torch.device, backend: str = "auto", causal: bool = False, dtype: torch.dtype = torch.float32) -> Plan:
    """Tables of one forward.

    Args:
        dtype: of queries and keys as the kernel will see them (the varlen kernel takes fp16 and bf16 only).

    Raises:
        ValueError: varlen was asked for where it cannot run.
    """
    can = _HAS_VARLEN and device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    if backend == "varlen" and not can:
        raise ValueError(f"attention=varlen needs CUDA, fp16 or bf16 and torch.nn.attention.varlen; got {device}, {dtype}: use auto")
    chosen = ("varlen" if can else "sdpa") if backend == "auto" else backend
    if chosen == "varlen":
        one_B1 = torch.arange(layout.size + 1, dtype=torch.int32, device=device)
        return Plan(chosen, causal, layout.size, layout.max_len, None, None, layout.cumulative_B1(device), one_B1)
    if layout.uniform:
        return Plan(chosen, causal, layout.size, layout.max_len, None, None, None, None)
    return Plan(chosen, causal, layout.size, layout.max_len, layout.flat_N(device), layout.mask_BL(device), None, None)


def kernel_dtype(x: Tensor) -> torch.dtype:
    """The type that a linear layer will give for ``x``: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _grid(x_ND: Tensor, plan: Plan) -> Tensor:
    """Packed rows (N, F) -> padded rows (B * max_len, F); the empty ones are zero."""
    if plan.flat_N is None:
        return x_ND
    return x_ND.new_zeros(plan.size * plan.max_len, x_ND.shape[1]).index_add_(0, plan.flat_N, x_ND)


def _dense(q_BHQK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, plan: Plan, causal: bool) -> Tensor:
    """Attention on a padded batch: (B, H, Q, K)."""
    mask_B11L = None if plan.mask_BL is None else plan.mask_BL[:, None, None, :]
    if plan.backend != "eager":
        # right-padded and causal: a valid query sees valid keys only, and padded queries are dropped
        return F.scaled_dot_product_attention(q_BHQK, k_BHLK, v_BHLK, attn_mask=None if causal else mask_B11L, is_causal=causal)
    scores = (q_BHQK @ k_BHLK.transpose(-1, -2)) / math.sqrt(q_BHQK.shape[-1])
    if mask_B11L is not None:
        scores = scores.masked_fill(~mask_B11L, -torch.inf)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1) @ v_BHLK


class Attention(nn.Module):
    """Self-attention with one fused projection.

    Args:
        width: of the states.
        heads: must divide ``width``.
        init_qkv: initialisation of the fused projection, ``init_out`` of the output projection.

    Raises:
        ValueError: ``heads`` does not divide ``width``.
    """

    def __init__(self, width: int, heads: int, init_qkv: Init = Init(), init_out: Init = Init()) -> None:  # noqa: B008
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}")
        self.heads = heads
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
        q, k, v = _grid(qkv_NF, plan).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        y = _dense(q, k, v, plan, plan.causal).transpose(1, 2).reshape(plan.size * plan.max_len, width)
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
        k, v = _grid(kv_NF, plan).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        y = _dense(q_BD.reshape(plan.size, 1, self.heads, -1).transpose(1, 2), k, v, plan, causal=False)
        return y.transpose(1, 2).reshape(plan.size, width)

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
