"""Cross-attention between two streams over packed rows, and the two published ways of joining streams with it.

``CoAttention`` is ViLBERT's (arXiv 1908.02265 section 3.1): each stream has its own queries, keys and values, and reads the other stream's.
``CrossLayers`` is LXMERT's (arXiv 1908.07490 section 3.2): one cross-attention for both directions, then a transformer block per stream.
N counts each stream's own tokens.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain.nn.attention import BACKENDS, Plan, dense, grid, kernel_dtype, plan
from mmpretrain.nn.blocks import MLP, Block, Rates, block_inits
from mmpretrain.nn.dropout import Dropout
from mmpretrain.nn.layers import Init, LayerNorm, Linear
from mmpretrain.nn.ragged import Ragged


def attend(q_NF: Tensor, kv_NF: Tensor, queries: Plan, keys: Plan, heads: int, dropout: float = 0.0) -> Tensor:
    """Attention of the tokens of one stream over those of the other, within each sample.

    Args:
        q_NF: queries of the stream that reads.
        kv_NF: keys, then values, of the stream that is read: twice as wide.
        queries, keys: plans of the two layouts, of one backend.
        dropout: of the attention probabilities.

    Returns:
        what each query read, head after head: as ``q_NF``.
    """
    width = q_NF.shape[1]
    if keys.backend == "varlen":
        return _varlen(q_NF, kv_NF, queries, keys, heads)
    q = grid(q_NF, queries).view(queries.size, queries.max_len, heads, -1).transpose(1, 2)
    k, v = grid(kv_NF, keys).view(keys.size, keys.max_len, 2, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    y_NF = dense(q, k, v, keys, False, None, dropout).transpose(1, 2).reshape(-1, width)
    return y_NF if queries.flat_N is None else y_NF.index_select(0, queries.flat_N)


def _varlen(q_NF: Tensor, kv_NF: Tensor, queries: Plan, keys: Plan, heads: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    k, v = kv_NF.view(kv_NF.shape[0], 2, heads, -1).unbind(1)
    q = q_NF.view(q_NF.shape[0], heads, -1)
    y: Any = varlen_attn(q, k, v, queries.cumulative_B1, keys.cumulative_B1, queries.max_len, keys.max_len, window_size=(-1, -1))
    return y.flatten(1)


def plans(text: Ragged, image: Ragged, attention: str, dropping: bool, head: int = 64) -> tuple[Plan, Plan]:
    """The plans of two streams, of one backend.

    Args:
        attention, dropping, head: see ``plan``; ``attention`` is its backend.

    Raises:
        ValueError: the streams have different numbers of samples, or varlen was asked for where it cannot run.
    """
    if text.layout.size != image.layout.size:
        raise ValueError(f"the two streams must show the same samples, got {text.layout.size} texts and {image.layout.size} images")
    device, dtype = text.x_ND.device, kernel_dtype(text.x_ND)
    made = [plan(x.layout, device, attention, dtype=dtype, dropping=dropping, head=head) for x in (text, image)]
    return made[0], made[1]


def _check(attention: str, heads: int, width: int) -> None:
    if attention not in BACKENDS:
        raise ValueError(f"attention={attention!r}; choose one of {', '.join(BACKENDS)}")
    if width % heads:
        raise ValueError(f"heads={heads} does not divide width={width}")


def _drop(rate: float) -> nn.Module:
    return Dropout(rate) if rate else nn.Identity()


class Side(nn.Module):
    """What one stream owns of a co-attention block: queries, keys, values, the way back, and its MLP, each with residual and LayerNorm.

    Args:
        stream: width of the stream.
        width: of the co-attention.
        hidden: of the MLP.
        eps: of the LayerNorms.
        inits: of (queries, keys and values; output; MLP up; MLP down).
    """

    def __init__(
        self, stream: int, width: int, hidden: int, act: str, eps: float, rates: Rates, inits: tuple[Init, Init, Init, Init]
    ) -> None:
        super().__init__()
        self.width = width
        self.qkv = Linear(stream, 3 * width, init=inits[0])
        self.out = Linear(width, stream, init=inits[1])
        self.norm1 = LayerNorm(stream, eps=eps)
        self.mlp = MLP(stream, hidden, act, rates.states, inits[2], inits[3], rates.activation)
        self.norm2 = LayerNorm(stream, eps=eps)
        self.dropout = _drop(rates.states)

    def project(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (N, width), and keys with values (N, 2 width)."""
        qkv_NF = self.qkv(x_ND)
        return qkv_NF[:, : self.width], qkv_NF[:, self.width :]

    def forward(self, x_ND: Tensor, read_NF: Tensor) -> Tensor:
        """The stream (N, D) with what it read (N, width) -> (N, D)."""
        x_ND = self.norm1(x_ND + self.dropout(self.out(read_NF)))
        return self.norm2(x_ND + self.mlp(x_ND))


class CoAttentionBlock(nn.Module):
    """ViLBERT's connection layer: text reads the image and the image reads the text, both as they were before the block.

    Args:
        text, image: widths of the streams.
        width: of the co-attention, divided by ``heads``.
        hidden: of the MLPs of text and image.
        act, eps, rates, inits: as in ``Block``.
    """

    def __init__(
        self,
        text: int,
        image: int,
        width: int,
        heads: int,
        hidden: tuple[int, int],
        act: str,
        eps: float,
        rates: Rates,
        inits: tuple[Init, Init, Init, Init],
    ) -> None:
        super().__init__()
        self.heads, self.rate = heads, rates.attention
        self.text = Side(text, width, hidden[0], act, eps, rates, inits)
        self.image = Side(image, width, hidden[1], act, eps, rates, inits)

    def forward(self, text_ND: Tensor, image_ND: Tensor, text: Plan, image: Plan) -> tuple[Tensor, Tensor]:
        """Text (N, D) and image (N, D), each of its own N and D -> the same shapes."""
        rate = self.rate if self.training else 0.0
        (text_q, text_kv), (image_q, image_kv) = self.text.project(text_ND), self.image.project(image_ND)
        text_read = attend(text_q, image_kv, text, image, self.heads, rate)
        image_read = attend(image_q, text_kv, image, text, self.heads, rate)
        return self.text(text_ND, text_read), self.image(image_ND, image_read)


class CoAttention(nn.Module):
    """The co-attention blocks of a two-stream model; what stands between them is the model's.

    Args:
        text_width, image_width: of the streams.
        width: of queries, keys and values.
        depth: number of blocks.
        heads: must divide ``width``.
        text_hidden, image_hidden: of the MLPs; None: four times the width of the stream.
        activation: of the MLPs.
        eps: of every LayerNorm.
        dropout: on the outputs of attention and MLPs.
        attention_dropout: of the attention probabilities, in training; ``auto`` takes sdpa then, and ``varlen`` is refused.
        activation_dropout: after the activation of the MLPs.
        attention: ``auto``, ``sdpa``, ``varlen`` or ``eager``.
        init: as in ``Transformer``.

    Raises:
        ValueError: ``heads`` does not divide ``width``, or an unknown backend, activation or init.
    """

    def __init__(
        self,
        text_width: int,
        image_width: int,
        width: int,
        depth: int,
        heads: int,
        text_hidden: int | None = None,
        image_hidden: int | None = None,
        activation: str = "gelu",
        eps: float = 1e-12,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        attention: str = "auto",
        init: str = "normal",
    ) -> None:
        super().__init__()
        _check(attention, heads, width)
        self.text_width, self.image_width, self.width, self.depth, self.heads = text_width, image_width, width, depth, heads
        self.eps, self.attention, self.attention_dropout = eps, attention, attention_dropout
        hidden = (text_hidden or 4 * text_width, image_hidden or 4 * image_width)
        rates, inits = Rates(dropout, attention_dropout, activation_dropout), block_inits(init, width, depth)
        make = lambda: CoAttentionBlock(text_width, image_width, width, heads, hidden, activation, eps, rates, inits)
        self.blocks = nn.ModuleList([make() for _ in range(depth)])

    def plans(self, text: Ragged, image: Ragged) -> tuple[Plan, Plan]:
        """The plans that every block of this stack takes."""
        return plans(text, image, self.attention, self.training and self.attention_dropout > 0, self.width // self.heads)


class CrossLayer(nn.Module):
    """LXMERT's cross-modality layer: one cross-attention for both directions, each reading the inputs of the layer, then a post-norm
    transformer block per stream.

    Args:
        width: of both streams.
        heads: must divide ``width``.
        hidden: of the MLPs.
        act, eps, rates, inits: as in ``Block``.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, act: str, eps: float, rates: Rates, inits: tuple[Init, Init, Init, Init]
    ) -> None:
        super().__init__()
        self.width, self.heads, self.rate = width, heads, rates.attention
        self.qkv = Linear(width, 3 * width, init=inits[0])
        self.out = Linear(width, width, init=inits[1])
        self.norm = LayerNorm(width, eps=eps)
        self.dropout = _drop(rates.states)
        self.text = Block(width, heads, hidden, act, "post", eps, rates, inits)
        self.image = Block(width, heads, hidden, act, "post", eps, rates, inits)

    def forward(
        self, text_ND: Tensor, image_ND: Tensor, text: Plan, image: Plan, keep_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Text (N, D) and image (N, D) -> the same shapes; with ``keep_B``, (B, D) for those rows of the text alone, and no image."""
        rate = self.rate if self.training else 0.0
        if keep_B is not None:
            weight, bias, width = self.qkv.weight, self.qkv.bias, self.width
            q_NF = F.linear(text_ND, weight[:width], bias[:width])
            kv_NF = F.linear(image_ND, weight[width:], bias[width:])
            return self.text(self._joined(text_ND, attend(q_NF, kv_NF, text, image, self.heads, rate)), text, keep_B), None
        text_qkv, image_qkv = self.qkv(text_ND), self.qkv(image_ND)
        text_read = attend(text_qkv[:, : self.width], image_qkv[:, self.width :], text, image, self.heads, rate)
        image_read = attend(image_qkv[:, : self.width], text_qkv[:, self.width :], image, text, self.heads, rate)
        return self.text(self._joined(text_ND, text_read), text), self.image(self._joined(image_ND, image_read), image)

    def _joined(self, x_ND: Tensor, read_ND: Tensor) -> Tensor:
        return self.norm(x_ND + self.dropout(self.out(read_ND)))


class CrossLayers(nn.Module):
    """A stack of LXMERT's cross-modality layers.

    Args:
        width: of both streams.
        depth: number of layers.
        heads: must divide ``width``.
        mlp_ratio: hidden width of the MLPs over ``width``.
        activation: of the MLPs.
        eps: of every LayerNorm.
        dropout: on the outputs of attention and MLPs.
        attention_dropout: of the attention probabilities, in training; ``auto`` takes sdpa then, and ``varlen`` is refused.
        activation_dropout: after the activation of the MLPs.
        attention: ``auto``, ``sdpa``, ``varlen`` or ``eager``.
        init: as in ``Transformer``.

    Raises:
        ValueError: ``depth`` is below 1, ``heads`` does not divide ``width``, or an unknown backend, activation or init.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        eps: float = 1e-12,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        attention: str = "auto",
        init: str = "normal",
    ) -> None:
        super().__init__()
        _check(attention, heads, width)
        if depth < 1:
            raise ValueError(f"depth={depth} of the cross-modality layers must be at least 1")
        self.width, self.depth, self.heads, self.eps = width, depth, heads, eps
        self.attention, self.attention_dropout = attention, attention_dropout
        rates, inits = Rates(dropout, attention_dropout, activation_dropout), block_inits(init, width, depth)
        make = lambda: CrossLayer(width, heads, round(width * mlp_ratio), activation, eps, rates, inits)
        self.blocks = nn.ModuleList([make() for _ in range(depth)])

    def forward(self, text: Ragged, image: Ragged, first: bool = False) -> tuple[Tensor, Tensor | None]:
        """States (N, D) of the text and of the image after the last layer.

        Args:
            first: the state of the first token of each text is all that is wanted: (B, D) at less cost, and no image.
        """
        tables = plans(text, image, self.attention, self.training and self.attention_dropout > 0, self.width // self.heads)
        keep_B = text.layout.first_B(text.x_ND.device) if first else None
        text_ND, image_ND = text.x_ND, image.x_ND
        for block in self.blocks[:-1]:
            text_ND, image_ND = block(text_ND, image_ND, *tables)
        last: tuple[Tensor, Tensor | None] = self.blocks[-1](text_ND, image_ND, *tables, keep_B)
        return last
