"""Transformer blocks and stacks over packed rows: no linear layer, norm or activation ever sees a padded token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmpretrain.nn.attention import BACKENDS, Attention, Plan, kernel_dtype, plan
from mmpretrain.nn.dropout import Dropout
from mmpretrain.nn.layers import Init, LayerNorm, Linear, activation
from mmpretrain.nn.ragged import Layout, Ragged

INITS = ("trunc_normal", "normal", "clip", "torch")


def block_inits(init: str, width: int, depth: int) -> tuple[Init, Init, Init, Init]:
    """Initialisations of (qkv, attention output, MLP up, MLP down).

    ``trunc_normal`` and ``normal``: std 0.02 (ViT, BERT). ``clip``: the text tower of CLIP (section 2.5 of the paper's code).
    ``torch``: what ``nn.MultiheadAttention`` and ``nn.Linear`` do, which is what CLIP's image tower keeps.
    """
    if init in ("trunc_normal", "normal"):
        return (Init(init),) * 4
    if init == "clip":
        out = Init("normal", width**-0.5 * (2 * depth) ** -0.5)
        return Init("normal", width**-0.5), out, Init("normal", (2 * width) ** -0.5), out
    if init == "torch":
        return Init("xavier"), Init("torch_zero_bias"), Init("torch"), Init("torch")
    raise ValueError(f"unknown init {init!r}; choose one of {', '.join(INITS)}")


class MLP(nn.Module):
    """Linear, activation, dropout, linear, dropout.

    Args:
        act_dropout: the first dropout's rate; None: ``dropout``, like the second (ViT). BERT has none there: 0.
    """

    def __init__(
        self, width: int, hidden: int, act: str, dropout: float, init_up: Init, init_down: Init, act_dropout: float | None = None
    ) -> None:
        super().__init__()
        self.up = Linear(width, hidden, init=init_up)
        self.act = activation(act)
        self.down = Linear(hidden, width, init=init_down)
        inner = dropout if act_dropout is None else act_dropout
        self.act_dropout = Dropout(inner) if inner else nn.Identity()
        self.dropout = Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.dropout(self.down(self.act_dropout(self.act(self.up(x_ND)))))


class Rates(NamedTuple):
    """Dropout rates of a block."""

    states: float = 0.0  # on the attention's output and on the MLP's
    attention: float = 0.0  # of the attention probabilities
    activation: float | None = None  # after the activation of the MLP; None: ``states``


class Block(nn.Module):
    """One transformer block, pre-norm or post-norm."""

    def __init__(
        self, width: int, heads: int, hidden: int, act: str, norm: str, eps: float, rates: Rates, inits: tuple[Init, Init, Init, Init]
    ) -> None:
        super().__init__()
        self.post = norm == "post"
        self.norm1 = LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads, inits[0], inits[1], rates.attention)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden, act, rates.states, inits[2], inits[3], rates.activation)
        self.dropout = Dropout(rates.states) if rates.states else nn.Identity()

    def forward(self, x_ND: Tensor, plan: Plan, keep_B: Tensor | None = None) -> Tensor:
        """States (N, D) -> (N, D), or (B, D): only the rows ``keep_B``, one per sample, at the cost of those rows."""
        y_ND = self.attention(x_ND if self.post else self.norm1(x_ND), plan, keep_B)
        x_ND = (x_ND if keep_B is None else x_ND.index_select(0, keep_B)) + self.dropout(y_ND)
        if self.post:
            x_ND = self.norm1(x_ND)
            return self.norm2(x_ND + self.mlp(x_ND))
        return x_ND + self.mlp(self.norm2(x_ND))


class Transformer(nn.Module):
    """A stack of blocks over packed rows.

    BERT's encoder is ``norm="post", final_norm=False, eps=1e-12, dropout=0.1, attention_dropout=0.1, activation_dropout=0, init="normal"``.

    Args:
        width: of the states.
        depth: number of blocks, at least 1.
        heads: must divide ``width``.
        mlp_ratio: hidden width of the MLP over ``width``.
        activation: ``gelu`` or ``quick_gelu``.
        norm: ``pre`` or ``post``.
        eps: of every LayerNorm.
        dropout: on the attention's output and on the MLP's.
        causal: a token sees itself and earlier ones.
        final_norm: LayerNorm after the last block.
        attention: ``auto``, ``sdpa``, ``varlen`` or ``eager``.
        init: ``trunc_normal``, ``normal``, ``clip`` or ``torch`` (see ``block_inits``).
        attention_dropout: of the attention probabilities, in training. The varlen kernel has none: ``auto`` then takes sdpa in training,
            and ``varlen`` is refused there.
        activation_dropout: after the activation of the MLP; None: ``dropout``.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        norm: str = "pre",
        eps: float = 1e-6,
        dropout: float = 0.0,
        causal: bool = False,
        final_norm: bool = True,
        attention: str = "auto",
        init: str = "trunc_normal",
        attention_dropout: float = 0.0,
        activation_dropout: float | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("pre", "post"):
            raise ValueError(f"norm={norm!r}; choose pre or post")
        if attention not in BACKENDS:
            raise ValueError(f"attention={attention!r}; choose one of {', '.join(BACKENDS)}")
        if depth < 1:
            raise ValueError(f"depth={depth} of a transformer must be at least 1")
        self.width, self.depth, self.heads, self.hidden = width, depth, heads, round(width * mlp_ratio)
        self.activation, self.eps, self.dropout, self.causal, self.attention = activation, eps, dropout, causal, attention
        self.attention_dropout = attention_dropout
        inits, rates = block_inits(init, width, depth), Rates(dropout, attention_dropout, activation_dropout)
        self.blocks = nn.ModuleList([Block(width, heads, self.hidden, activation, norm, eps, rates, inits) for _ in range(depth)])
        self.norm = LayerNorm(width, eps=eps) if final_norm else nn.Identity()

    def forward(self, x: Ragged, only: str | Tensor | None = None, mask: Tensor | None = None) -> Ragged:
        """States after the last block and the final norm.

        Args:
            x: packed states (N, D).
            only: ``first`` or ``last``: the state of the first or the last token of each sample is all that is wanted, and the last block
                computes its queries, its MLP and the final norm for those alone. The numbers are the same. Or the packed row of the one
                token of each sample, int64 (B,).
            mask: bool (B, L, L) over the padded grid, L the longest sample: query row i may look at key column j. Padding (and causality)
                are added to it; it must leave every token at least one key.

        Raises:
            ValueError: a token other than the last in a causal stack, whose last block masks nothing for one row; a mask of another shape
                or type.
        """
        device = x.x_ND.device
        dropping = self.training and self.attention_dropout > 0
        dtype, head = kernel_dtype(x.x_ND), self.width // self.heads
        table = plan(x.layout, device, self.attention, self.causal, dtype, mask, dropping, self.width, head=head)
        keep_B = None if only is None else self._rows(x.layout, only, device)
        h_ND = x.x_ND
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            h_ND = block(h_ND, table, keep_B) if last and keep_B is not None else block(h_ND, table)
        layout = x.layout if keep_B is None else Layout((1,) * x.layout.size)
        return Ragged(self.norm(h_ND), layout)

    def _rows(self, layout: Layout, only: str | Tensor, device: torch.device) -> Tensor:
        if isinstance(only, Tensor):
            if self.causal:
                raise ValueError("rows of one token per sample are for stacks that are not causal; choose only=last")
            return only
        if only not in ("first", "last") or (only == "first" and self.causal):
            raise ValueError(f"only={only!r} with causal={self.causal}; choose first (not causal) or last")
        return layout.first_B(device) if only == "first" else layout.last_B(device)
