"""Multi-head self-attention over packed rows.

Three ways to the same numbers: ``sdpa`` pads the batch to its own maximum for the attention alone, ``varlen`` runs the variable-length
kernel of CUDA on the packed rows, ``eager`` spells the softmax out (parity tests). ``auto`` takes ``varlen`` where it can, else ``sdpa``.
On the CPU, ``sdpa`` puts samples of about one length together where that leaves out enough padding.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain.nn.dropout import dropout as drop
from mmpretrain.nn.layers import Init, Linear
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout

BACKENDS = ("auto", "sdpa", "varlen", "eager")
GROUPS = 8  # of samples of about one length
WORTH = 2**23  # pairs of slots x width that groups must leave out: below, their calls cost more than the padding
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
    groups: tuple[Plan, ...] = ()  # of some samples each, with grids of their own, one after another; empty: all samples in one grid
    order_B: Tensor | None = None  # samples in the order of the groups
    place_B: Tensor | None = None  # and where each one is in that order
    bias_BHLL: Tensor | None = None  # added to the scores of each head, before padding is taken out; B may be 1: the same for all samples

    @property
    def rows(self) -> int:
        """Of the padded grid, or of the grids of all groups."""
        return sum(group.rows for group in self.groups) if self.groups else self.size * self.max_len

    def parts(self) -> tuple[Plan, ...]:
        """The plans of the grids, one after another."""
        return self.groups or (self,)


def runs_varlen(device: torch.device, dtype: torch.dtype, head: int) -> bool:
    """Whether the variable-length kernel, which is flash attention, takes heads of ``head`` values there. It pads none, as sdpa does."""
    if not _HAS_VARLEN or device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return head % 8 == 0 and head <= 256 and torch.cuda.get_device_capability(device) >= (8, 0)


def plan(
    layout: Layout,
    device: torch.device,
    backend: str = "auto",
    causal: bool = False,
    dtype: torch.dtype = torch.float32,
    mask: Tensor | None = None,
    dropping: bool = False,
    width: int = 0,
    biased: bool = False,
    head: int = 64,
) -> Plan:
    """Tables of one forward.

    Args:
        dtype: of queries and keys as the kernel will see them.
        mask: bool (B, max_len, max_len) over the padded grid: query row i may look at key column j. Padding and causality are added to it;
            every token must be left at least one key.
        dropping: attention probabilities are dropped in this forward.
        width: of queries and keys, all heads together, by which groups are worth their calls; 0: never make groups.
        biased: ``bias_BHLL`` will be put into it.
        head: values of a head, see ``runs_varlen``.

    Raises:
        ValueError: varlen was asked for where it cannot run, or the mask has another shape or type, or a causal plan is biased.
    """
    can = runs_varlen(device, dtype, head)
    if biased and causal:
        raise ValueError("attention with a bias of its scores cannot be causal")
    if backend == "varlen" and (mask is not None or dropping or biased):
        whats = {"a mask of query and key pairs": mask is not None, "attention_dropout in training": dropping, "a bias of scores": biased}
        what = next(name for name, there in whats.items() if there)
        raise Misfit(f"attention=varlen cannot do {what}: use auto, which takes sdpa for it")
    if backend == "varlen" and not can:
        needs = "CUDA on Ampere or newer, fp16 or bf16, heads of a multiple of 8 values up to 256, and torch.nn.attention.varlen"
        raise Misfit(f"attention=varlen needs {needs}; got {device}, {dtype}, heads of {head}: use auto")
    chosen = ("varlen" if can and mask is None and not dropping and not biased else "sdpa") if backend == "auto" else backend
    if chosen == "varlen":
        one_B1 = torch.arange(layout.size + 1, dtype=torch.int32, device=device)
        return Plan(chosen, causal, layout.size, layout.max_len, None, None, layout.cumulative_B1(device), one_B1)
    pairs_BLL = None if mask is None else _pairs(layout, mask, causal, device)
    if layout.uniform:
        return Plan(chosen, causal, layout.size, layout.max_len, None, None, None, None, pairs_BLL)
    table = Plan(chosen, causal, layout.size, layout.max_len, layout.flat_N(device), layout.mask_BL(device), None, None, pairs_BLL)
    groups = chosen == "sdpa" and device.type == "cpu" and mask is None and not biased
    return _grouped(table, layout, width, device) if groups else table


def _grouped(table: Plan, layout: Layout, width: int, device: torch.device) -> Plan:
    """The plan in groups of samples of about one length, each padded to its own longest; as it is where too little would be left out."""
    lengths = np.asarray(layout.lengths, dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    parts = np.array_split(order, min(GROUPS, layout.size))
    cells = sum(len(part) * int(lengths[part[-1]]) ** 2 for part in parts)
    if min(layout.lengths) == 0 or (layout.size * layout.max_len**2 - cells) * width < WORTH:
        return table
    groups, start, first = [], np.empty_like(lengths), 0
    for part in parts:
        own = Layout(tuple(lengths[part]))
        mask_BL = None if own.uniform else own.mask_BL(device)
        groups.append(Plan(table.backend, table.causal, own.size, own.max_len, None, mask_BL, None, None))
        start[part] = first + np.arange(own.size) * own.max_len
        first += groups[-1].rows
    flat = np.repeat(start - layout.starts[:-1], lengths) + np.arange(layout.total)
    flat_N, order_B, place_B = (torch.from_numpy(x) for x in (flat, order, np.argsort(order)))
    return table._replace(flat_N=flat_N, mask_BL=None, groups=tuple(groups), order_B=order_B, place_B=place_B)


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
    """Packed rows (N, F) -> padded rows (``plan.rows``, F); the empty ones are zero."""
    if plan.flat_N is None:
        return x_ND
    return x_ND.new_zeros(plan.rows, x_ND.shape[1]).index_add_(0, plan.flat_N, x_ND)


def dense(q_BHQK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, plan: Plan, causal: bool, pairs_BQL: Tensor | None, dropout: float) -> Tensor:
    """Attention on a padded batch: (B, H, Q, K). ``pairs_BQL`` stands for padding and causality where it is given."""
    mask = None if plan.mask_BL is None else plan.mask_BL[:, None, None, :]
    if pairs_BQL is not None:
        mask, causal = pairs_BQL[:, None], False
    if plan.bias_BHLL is not None:
        if plan.bias_BHLL.shape[-2] != q_BHQK.shape[-2]:
            raise ValueError("attention with a bias of its scores is computed for all tokens")
        bias_BHLL = plan.bias_BHLL.to(q_BHQK.dtype)
        mask = bias_BHLL if mask is None else bias_BHLL.masked_fill(~mask, -torch.inf)
    slow = dropout > 0 and q_BHQK.device.type == "cpu" and plan.bias_BHLL is None  # of the kernel, whose dropout is torch's
    if plan.backend != "eager" and not slow:
        # right-padded and causal: a valid query sees valid keys only, and padded queries are dropped
        mask = None if causal else mask
        return F.scaled_dot_product_attention(q_BHQK, k_BHLK, v_BHLK, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    scores = (q_BHQK @ k_BHLK.transpose(-1, -2)) / math.sqrt(q_BHQK.shape[-1])
    if mask is not None:
        least = torch.finfo(scores.dtype).min  # and not -inf: a sample without keys reads zeros
        scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, least)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return drop(scores.softmax(-1), dropout) @ v_BHLK if dropout else scores.softmax(-1) @ v_BHLK


def _split(x_PF: Tensor, parts: tuple[Plan, ...]) -> tuple[Tensor, ...]:
    """The rows of each grid."""
    return (x_PF,) if len(parts) == 1 else x_PF.split([own.rows for own in parts])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
        if keep_B is not None:
            return self.out(self._kept(x_ND, plan, keep_B))
        qkv_NF = self.qkv(x_ND)
        if plan.backend == "varlen":
            return self.out(self._varlen(qkv_NF, plan))
        parts = plan.parts()
        y_PD = _joined([self._padded(x_PF, own) for x_PF, own in zip(_split(grid(qkv_NF, plan), parts), parts, strict=True)])
        return self.out(y_PD if plan.flat_N is None else y_PD.index_select(0, plan.flat_N))

    def _padded(self, qkv_PF: Tensor, plan: Plan) -> Tensor:
        """Attention within one grid: (P, 3 D) -> (P, D)."""
        shape = (plan.size, plan.max_len, 3, self.heads, -1)
        q, k, v = qkv_PF.view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        return dense(q, k, v, plan, plan.causal, plan.pairs_BLL, self._rate).transpose(1, 2).reshape(plan.rows, -1)

    def _kept(self, x_ND: Tensor, plan: Plan, keep_B: Tensor) -> Tensor:
        """Attention of one row per sample, (B, D): keys and values of every row, queries of the kept ones alone."""
        width = x_ND.shape[1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q_BD = F.linear(x_ND.index_select(0, keep_B), weight[:width], bias[:width])
        kv_NF = F.linear(x_ND, weight[width:], bias[width:])
        if plan.backend == "varlen":
            return self._varlen_kept(q_BD, kv_NF, plan)
        parts, kv_PF = plan.parts(), grid(kv_NF, plan)
        if plan.order_B is None or plan.place_B is None:
            return self._one_each(q_BD, kv_PF, plan, keep_B)
        queries = q_BD.index_select(0, plan.order_B).split([own.size for own in parts])
        y_BD = _joined([self._one_each(q, kv, own) for q, kv, own in zip(queries, _split(kv_PF, parts), parts, strict=True)])
        return y_BD.index_select(0, plan.place_B)

    def _one_each(self, q_BD: Tensor, kv_PF: Tensor, plan: Plan, keep_B: Tensor | None = None) -> Tensor:
        """Attention of one query per sample over the keys and values (P, 2 D) of a grid: (B, D)."""
        k, v = kv_PF.view(plan.size, plan.max_len, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        pairs_B1L = None
        if plan.pairs_BLL is not None and keep_B is not None:
            flat_B = keep_B if plan.flat_N is None else plan.flat_N.index_select(0, keep_B)
            pairs_B1L = plan.pairs_BLL.flatten(0, 1).index_select(0, flat_B)[:, None]
        y = dense(q_BD.reshape(plan.size, 1, self.heads, -1).transpose(1, 2), k, v, plan, False, pairs_B1L, self._rate)
        return y.transpose(1, 2).reshape(plan.size, -1)

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
