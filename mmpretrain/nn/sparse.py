"""The sparse attention of DALL-E (arXiv 2102.12092, appendix B.1 and figure 11; Child et al. 2019, arXiv 1904.10509) over [text; image].

Text looks at itself and earlier text. A code of the image looks at all of the text and, in one softmax with it, at codes of the image
that depend on the layer: ``row``: itself and the W before it in raster order, the last of which stands above it; ``column``: itself and
those above it; ``conv``: itself and the earlier half of a k x k square around it, whose sides wrap around as raster order does;
``full``: all earlier ones. The published stack has columns in the layers i of 1 to depth with (i - 2) mod 4 = 0, a convolution in the last
and rows elsewhere.

Rows and convolutions are bands in raster order: blocks of queries meet one window of keys each, from the farthest that the first of them
looks at to the last of them, views of one padded tensor. Columns are blocks of the transposed grid. What is not allowed is not computed,
but for the rest of these blocks: of rows and columns their corners; of a convolution also what lies between the sides of the square (at a
width of 32 and a kernel of 11, 197 keys for 61 allowed ones), since a window for each row of it costs more in copies than it saves. The
scores with the text are one product of their own. No tensor of tokens x tokens exists but in ``full``, where SDPA decides.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain.nn.attention import Attention
from mmpretrain.nn.blocks import MLP
from mmpretrain.nn.dropout import Dropout
from mmpretrain.nn.layers import Init, LayerNorm

ATTENTIONS = ("sparse", "full")
KINDS = ("row", "column", "conv", "full")
BLOCK = 16  # least queries of a block: below, products are too small to be worth their calls


def layer_kinds(depth: int, attention: str = "sparse") -> tuple[str, ...]:
    """The kind of each layer: those of the paper, or ``full`` everywhere.

    Raises:
        ValueError: no layer, or an unknown attention.
    """
    if depth < 1:
        raise ValueError(f"depth={depth} must be at least 1")
    if attention not in ATTENTIONS:
        raise ValueError(f"attention={attention!r}; choose one of {', '.join(ATTENTIONS)}")
    if attention == "full":
        return ("full",) * depth
    return (*("column" if (i - 2) % 4 == 0 else "row" for i in range(1, depth)), "conv")


def distances(kind: str, width: int, kernel: int = 11) -> tuple[int, ...]:
    """How far back in raster order the codes are that one code looks at, ascending, itself (0) first; of ``row`` and ``conv``.

    Args:
        width: codes in a row of the grid.
        kernel: side of the square of ``conv``, odd.

    Raises:
        ValueError: an even kernel, or a kind whose distances depend on the place.
    """
    if kind == "row":
        return tuple(range(width + 1))
    if kind != "conv":
        raise ValueError(f"kind={kind!r} has no fixed distances")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel={kernel} must be odd")
    reach = kernel // 2
    found = {above * width + left for above in range(reach + 1) for left in range(-reach, reach + 1)}
    return tuple(sorted(one for one in found if one >= 0))


class Pattern(NamedTuple):
    """What a layer needs to know of the tokens that it is given: ints, and a small tensor."""

    kind: str
    text: int  # states of the text; the rest are codes of the image, in raster order
    columns: int  # of the grid
    block: int = 0  # of row and conv: queries that meet the same window
    reach: int = 0  # how far before the block this begins; it ends with the block
    bias: Tensor | None = None  # added to scores, 0 or -inf: (blocks, block, reach + block), or (rows, rows) of a column


@lru_cache(256)
def _window(kind: str, columns: int, kernel: int, n: int) -> tuple[int, int, Tensor]:
    """Block, reach and bias of ``row`` and ``conv`` for the first n codes."""
    block = min(max(BLOCK, columns), n)
    back = [one for one in distances(kind, columns, kernel) if one < n]
    reach, blocks = back[-1], -(-n // block)
    allowed = torch.zeros(reach + block, dtype=torch.bool)
    allowed[back] = True
    distance = torch.arange(block)[:, None] + reach - torch.arange(reach + block)[None, :]
    place = torch.arange(blocks)[:, None, None] * block - reach + torch.arange(reach + block)
    return block, reach, bias((allowed[distance.clamp(min=0)] & (distance >= 0))[None] & (place >= 0))


def bias(allowed: Tensor) -> Tensor:
    """float32: 0 where allowed, -inf elsewhere."""
    return torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)


def pattern(kind: str, text: int, n: int, columns: int, kernel: int = 11, device: torch.device | str = "cpu") -> Pattern:
    """Of a layer of this kind over ``text`` states of the text and the first ``n`` codes of a grid with ``columns`` columns.

    Raises:
        ValueError: an unknown kind, or an even kernel.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; choose one of {', '.join(KINDS)}")
    if n == 0 or kind == "full":
        return Pattern(kind, text, columns)
    if kind == "column":
        rows = -(-n // columns)
        return Pattern(kind, text, columns, bias=bias(torch.ones(rows, rows, dtype=torch.bool).tril()).to(device))
    block, reach, table = _window(kind, columns, kernel, n)
    return Pattern(kind, text, columns, block, reach, table.to(device))


def seen(kind: str, place: int, columns: int, kernel: int = 11) -> slice | list[int]:
    """The codes that the code at ``place`` looks at, ascending, itself last."""
    if kind == "conv":
        return [place - back for back in reversed(distances(kind, columns, kernel)) if back <= place]
    first, step = {"row": (max(0, place - columns), 1), "column": (place % columns, columns), "full": (0, 1)}[kind]
    return slice(first, place + 1, step)


class Memory:
    """Keys and values of one layer, (samples, heads, tokens, width of a head). The text is kept once for all copies of a sample.

    Args:
        capacity: codes of the image that there is room for.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.copies = capacity, 1
        self.text: tuple[Tensor, Tensor] | None = None
        self.image: tuple[Tensor, Tensor] | None = None

    def begin(self, k: Tensor, v: Tensor, text: int) -> None:
        """Keep those of a whole sequence, of which ``text`` are of the text."""
        self.text = (k[:, :, :text], v[:, :, :text])
        self.image = (self._room(k[:, :, text:]), self._room(v[:, :, text:]))

    def _room(self, given: Tensor) -> Tensor:
        shape = (given.shape[0], given.shape[1], self.capacity, given.shape[3])
        made = given.new_empty(shape)
        made[:, :, : given.shape[2]] = given
        return made

    def append(self, k: Tensor, v: Tensor, place: int) -> None:
        """Keep those of the code at ``place``, (samples, heads, 1, width of a head)."""
        assert self.image is not None
        self.image[0][:, :, place : place + 1] = k
        self.image[1][:, :, place : place + 1] = v

    def expand(self, n: int, given: int) -> Memory:
        """Every sample n times, one after another, with ``given`` codes so far."""
        assert self.image is not None
        made = Memory(self.capacity)
        made.copies, made.text = self.copies * n, self.text
        key, value = (made._room(x[:, :, :given].repeat_interleave(n, dim=0)) for x in self.image)
        made.image = (key, value)
        return made


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Attention over [text; image]: (B, H, L, d) each -> (B, H, L, d)."""
    text = pattern.text
    if pattern.kind == "full" or q.shape[2] == text:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    k_text, v_text = k[:, :, :text], v[:, :, :text]
    look = _column if pattern.kind == "column" else _banded
    told = F.scaled_dot_product_attention(q[:, :, :text], k_text, v_text, is_causal=True)
    seen = look(q[:, :, text:] * q.shape[-1] ** -0.5, k[:, :, text:], v[:, :, text:], k_text, v_text, pattern)
    return torch.cat([told, seen], dim=2)


def _banded(q: Tensor, k: Tensor, v: Tensor, k_text: Tensor, v_text: Tensor, pattern: Pattern) -> Tensor:
    """Codes over the text and a window of codes up to them; q scaled."""
    assert pattern.bias is not None
    n, block, reach, text = q.shape[2], pattern.block, pattern.reach, k_text.shape[2]
    blocks = pattern.bias.shape[0]
    behind = blocks * block - n
    q = F.pad(q, (0, 0, 0, behind))
    k, v = (F.pad(x, (0, 0, reach, behind)).unfold(2, reach + block, block) for x in (k, v))  # (B, H, blocks, d, keys)
    q_blocks = q.unflatten(2, (blocks, block))
    told = (q @ k_text.transpose(-1, -2)).unflatten(2, (blocks, block))
    near = q_blocks @ k
    weights = torch.cat([told, near + pattern.bias.to(near.dtype)], dim=-1).softmax(-1)
    y = weights[..., text:] @ v.transpose(-1, -2)
    return (y.flatten(2, 3) + weights[..., :text].flatten(2, 3) @ v_text)[:, :, :n]


def _column(q: Tensor, k: Tensor, v: Tensor, k_text: Tensor, v_text: Tensor, pattern: Pattern) -> Tensor:
    """Codes over the text and the codes above them, on the transposed grid; q scaled."""
    assert pattern.bias is not None
    n, columns, text = q.shape[2], pattern.columns, k_text.shape[2]
    behind = -n % columns  # codes that fill up the last row: nothing real looks at it but itself
    q, k, v = (F.pad(x, (0, 0, 0, behind)) for x in (q, k, v))
    turned = lambda x: x.unflatten(2, (-1, columns)).transpose(2, 3)  # (B, H, columns, rows, d)
    back = lambda x: x.transpose(2, 3).flatten(2, 3)
    above = turned(q) @ turned(k).transpose(-1, -2)
    weights = torch.cat([turned(q @ k_text.transpose(-1, -2)), above + pattern.bias.to(above.dtype)], dim=-1).softmax(-1)
    y = back(weights[..., text:] @ turned(v)) + back(weights[..., :text]) @ v_text
    return y[:, :, :n]


def attend_one(q: Tensor, memory: Memory, seen: slice | list[int]) -> Tensor:
    """One code of each sample over the text and the kept codes that it looks at, itself among them: (B, H, 1, d) -> (B, H, 1, d). The
    copies of a sample meet its text in one product."""
    assert memory.text is not None and memory.image is not None
    (k_text, v_text), (k, v) = memory.text, (x[:, :, seen] for x in memory.image)
    text = k_text.shape[2]
    q = q * q.shape[-1] ** -0.5
    together = lambda x: x.unflatten(0, (-1, memory.copies)).squeeze(3).transpose(1, 2)  # (B, H, 1, .) -> (samples, H, copies, .)
    apart = lambda x: x.transpose(1, 2).flatten(0, 1).unsqueeze(2)
    told, near = together(q) @ k_text.transpose(-1, -2), q @ k.transpose(-1, -2)
    weights = torch.cat([apart(told), near], dim=-1).softmax(-1)
    return apart(together(weights[..., :text]) @ v_text) + weights[..., text:] @ v


class SparseAttention(Attention):
    """Self-attention over [text; image] of one kind.

    Args:
        kind: ``row``, ``column``, ``conv`` or ``full``.
        kernel: of ``conv``.
        width, heads, init_qkv, init_out: see ``Attention``.
    """

    def __init__(self, width: int, heads: int, kind: str, kernel: int, init_qkv: Init, init_out: Init) -> None:
        super().__init__(width, heads, init_qkv, init_out)
        self.kind, self.kernel = kind, kernel

    def forward(  # type: ignore[override]  # dense batches: every sample has as many tokens
        self, x_BLD: Tensor, pattern: Pattern, memory: Memory | None = None, place: int | None = None
    ) -> Tensor:
        """States (B, L, D) -> (B, L, D).

        Args:
            pattern: of this layer's kind.
            memory: where keys and values are kept.
            place: the states are one code of each sample, the one at this place of the grid; the rest is in ``memory``.
        """
        q, k, v = self.qkv(x_BLD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if place is not None and memory is not None:
            memory.append(k, v, place)
            y = attend_one(q, memory, seen(self.kind, place, pattern.columns, self.kernel))
        else:
            if memory is not None:
                memory.begin(k, v, pattern.text)
            y = attend(q, k, v, pattern)
        return self.out(y.transpose(1, 2).flatten(2))


class SparseBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), as in Child et al., section 5.2: dropout at the end of both branches alone.

    Args:
        hidden: width of the MLP.
        act: ``gelu`` or ``quick_gelu``.
        gain: weights start from N(0, gain / sqrt(fan-in)).
        ends: factor of that for the weights that end a branch.
        width, heads, kind, kernel: see ``SparseAttention``.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, kind: str, kernel: int, act: str, eps: float, dropout: float, gain: float, ends: float
    ) -> None:
        super().__init__()
        std = lambda fan_in: gain * fan_in**-0.5
        inside, end = Init("normal", std(width)), Init("normal", ends * std(width))
        self.norm1 = LayerNorm(width, eps=eps)
        self.attention = SparseAttention(width, heads, kind, kernel, inside, end)
        self.norm2 = LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden, act, dropout, inside, Init("normal", ends * std(hidden)), act_dropout=0.0)
        self.dropout = Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x_BLD: Tensor, pattern: Pattern, memory: Memory | None = None, place: int | None = None) -> Tensor:
        """States (B, L, D) -> (B, L, D); for the other arguments see ``SparseAttention``."""
        x_BLD = x_BLD + self.dropout(self.attention(self.norm1(x_BLD), pattern, memory, place))
        return x_BLD + self.mlp(self.norm2(x_BLD))
