"""DALL-E's second stage (Ramesh et al., ICML 2021, https://arxiv.org/abs/2102.12092): one left-to-right transformer over [text; codes of
the picture], with the sparse attention of ``nn/sparse.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mmpretrain.nn.hidden import Causal
from mmpretrain.nn.layers import Embedding, Init
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.nn.sparse import Memory, Pattern, SparseBlock, layer_kinds, pattern
from mmpretrain.types import Batch, Spec, Text


class Cache:
    """What sampling keeps: keys and values of every layer, and how many codes each picture has. Made by ``DALLE.prefill``."""

    def __init__(self, layers: Sequence[Memory], codes: int) -> None:
        self.layers, self.codes = tuple(layers), codes

    def expand(self, n: int) -> Cache:
        """Every sample n times, one after another, on the same keys and values of the text; this cache stays as it is.

        Raises:
            ValueError: n is not positive.
        """
        if n < 1:
            raise ValueError(f"expand: n={n} must be at least 1")
        return Cache([layer.expand(n, self.codes) for layer in self.layers], self.codes)


class DALLE(nn.Module):
    """Text and codes of each sample in one stream, [start, t_1 .. t_T, c_1 .. c_hw]; each state predicts the token behind it.

    A text always has T positions: where it has no token, the learned padding of that position stands (section 2.2), which is looked at like
    any token. So all streams of a batch have one length, and 1 + T + hw - 1 tokens predict the T + hw that the paper counts.

    Args:
        width: of the states.
        depth: number of blocks.
        heads: must divide ``width``; the paper's have 64 values.
        vocab_size: ids of texts.
        codes: codes of the discrete autoencoder.
        text_positions: T, and so the number of learned paddings.
        grid: rows and columns of the codes of a picture.
        mlp_ratio: hidden width of the MLP over ``width``.
        attention: ``sparse``: the published kinds by layer; ``full``: every code looks at all earlier ones.
        kernel: side of the square of the last, convolutional layer.
        activation: of the MLP: ``quick_gelu`` (Child et al., section 5.2) or ``gelu``.
        gain: weights start from N(0, gain / sqrt(fan-in)), tables from N(0, gain / sqrt(width)), those of rows and columns, which are added
            up, from N(0, gain / sqrt(2 width)). Child et al. (section 6) have 0.125; narrow models learn sooner with 1.
        eps: of every LayerNorm.
        dropout: at the end of both branches of a block.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        vocab_size: int,
        codes: int,
        text_positions: int = 256,
        grid: tuple[int, int] = (32, 32),
        mlp_ratio: float = 4.0,
        attention: Literal["sparse", "full"] = "sparse",
        kernel: int = 11,
        activation: Literal["quick_gelu", "gelu"] = "quick_gelu",
        gain: float = 0.125,
        eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if text_positions < 1 or min(grid) < 1:
            raise ValueError(f"DALLE: text_positions={text_positions} and both sides of grid={tuple(grid)} must be at least 1")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"DALLE: kernel={kernel} must be odd")
        self.width, self.vocab_size, self.text_positions, self.kernel, self.eps = width, vocab_size, text_positions, kernel, eps
        self.grid = (grid[0], grid[1])
        self.kinds = layer_kinds(depth, attention)
        token, two = Init("normal", gain * width**-0.5), Init("normal", gain * (2 * width) ** -0.5)
        self.start = Embedding(1, width, token)
        self.words = Embedding(vocab_size + text_positions, width, token)  # the last rows: the padding of each position
        self.word_positions = Embedding(text_positions, width, token)
        self.codes = Embedding(codes, width, token)
        self.rows, self.columns = Embedding(self.grid[0], width, two), Embedding(self.grid[1], width, two)
        hidden, ends = round(width * mlp_ratio), (2 * depth) ** -0.5
        self.layers = nn.ModuleList(
            [SparseBlock(width, heads, hidden, kind, kernel, activation, eps, dropout, gain, ends) for kind in self.kinds]
        )
        self._patterns: dict[tuple[int, int, torch.device], dict[str, Pattern]] = {}

    @property
    def spec(self) -> Spec:
        return Spec(
            self.width, ("causal",), self.vocab_size, norm_eps=self.eps, codes=self.codes.num_embeddings, code_grid=self.grid,
            text_pads=self.text_positions,
        )  # fmt: skip

    @property
    def length(self) -> int:
        """Codes of a picture."""
        return self.grid[0] * self.grid[1]

    def blocks(self) -> list[nn.Module]:
        """The units of sharding, activation checkpointing and compilation."""
        return list(self.layers)

    def forward(self, batch: Batch, kind: str = "causal") -> Causal:
        """States of the last block, each of them the one that predicts the token of its place; heads put their norm over them.

        ``text`` has T states for every sample, those of paddings included; of a batch without codes only as many as its longest text has
        tokens. ``image`` has those of the codes in raster order. A batch without texts has empty ones, that is paddings alone.

        Args:
            batch: text, codes or both.
            kind: ``causal``.

        Raises:
            ValueError: another kind is asked for; the batch has neither text nor codes; a text is too long, or a grid of codes is another.
        """
        if kind != "causal":
            raise ValueError(f"DALLE offers the kind 'causal', not {kind!r}")
        if batch.codes is None:
            if batch.text is None:
                raise ValueError("DALLE needs a batch with text, codes or both")
            return Causal(self._texts(batch.text), None)
        codes_BN = batch.codes.dense().flatten(1)
        if batch.codes.grids[0] != self.grid:
            raise ValueError(f"DALLE has a grid of {self.grid} codes, the pictures have {batch.codes.grids[0]}: set model.system's grid")
        text = no_text(batch.size, codes_BN.device) if batch.text is None else batch.text
        positions = self.text_positions
        x_BLD = self._run(self._embedded(text, positions, codes_BN[:, :-1]), 1 + positions)
        parts = (x_BLD[:, :positions], x_BLD[:, positions:])
        found = [Ragged(x.flatten(0, 1), Layout((x.shape[1],) * batch.size)) for x in parts]
        return Causal(found[0], found[1])

    def _texts(self, text: Text) -> Ragged:
        """Texts alone: no state behind the last token of the longest one but one."""
        longest = max(text.lengths, default=0)
        if longest == 0:
            return Ragged(self.start.weight.new_zeros(0, self.width), Layout((0,) * len(text.lengths)))
        x_BLD = self._run(self._embedded(text, longest - 1, None), longest)
        return Ragged(x_BLD.flatten(0, 1), Layout((longest,) * len(text.lengths)))

    def _embedded(self, text: Text, positions: int, codes_Bn: Tensor | None) -> Tensor:
        """[start, the first ``positions`` tokens of the text, codes]: (B, L, D)."""
        device = text.ids_BT.device
        ids_BT = self._padded(text)[:, :positions]
        start_B1D = self.start.weight.expand(ids_BT.shape[0], 1, self.width)
        words_BTD = self.words(ids_BT) + self.word_positions.weight[:positions]
        parts = [start_B1D, words_BTD]
        if codes_Bn is not None and codes_Bn.shape[1]:
            parts.append(self.codes(codes_Bn) + self._places(torch.arange(codes_Bn.shape[1], device=device)))
        return torch.cat(parts, dim=1)

    def _places(self, place_n: Tensor) -> Tensor:
        """Row and column embeddings of places of the grid: (n, D)."""
        return self.rows(place_n // self.grid[1]) + self.columns(place_n % self.grid[1])

    def _padded(self, text: Text) -> Tensor:
        """Ids with the paddings behind them, (B, T)."""
        layout, positions = Layout(text.lengths), self.text_positions
        if layout.max_len > positions:
            raise Misfit(
                f"DALLE has {positions} text positions, a text has {layout.max_len} tokens: set data.max_tokens to {positions}"
            )
        device, longest = text.ids_BT.device, layout.max_len
        pads_T = torch.arange(self.vocab_size, self.vocab_size + positions, device=device)
        ids_BT = pads_T.repeat(layout.size, 1)
        if longest:
            ids_BT[:, :longest] = torch.where(layout.mask_BL(device), text.ids_BT[:, :longest], pads_T[:longest])
        return ids_BT

    def _run(self, x_BLD: Tensor, text: int, memories: Sequence[Memory] | None = None) -> Tensor:
        table = self._table(text, x_BLD.shape[1] - text, x_BLD.device)
        for i, (block, kind) in enumerate(zip(self.layers, self.kinds, strict=True)):
            x_BLD = block(x_BLD, table[kind]) if memories is None else block(x_BLD, table[kind], memories[i])
        return x_BLD

    def _table(self, text: int, n: int, device: torch.device) -> dict[str, Pattern]:
        """The patterns of a stream, made once."""
        key = (text, n, device)
        if key not in self._patterns:
            made = {kind: pattern(kind, text, n, self.grid[1], self.kernel, device) for kind in sorted(set(self.kinds))}
            if len(self._patterns) >= 16:  # texts alone come in many lengths
                self._patterns.clear()
            self._patterns[key] = made
        return self._patterns[key]

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def prefill(self, text: Text, codes_Bn: Tensor | None = None) -> tuple[Cache, Tensor]:
        """Run texts, and the first n codes of their pictures.

        Args:
            text: of each picture; ``no_text`` for none.
            codes_Bn: int64; None: none.

        Returns:
            the cache, and the states (B, D) that predict the next code.

        Raises:
            ValueError: a text is too long, or the codes leave none to predict.
        """
        n = 0 if codes_Bn is None else codes_Bn.shape[1]
        if n >= self.length:
            raise ValueError(f"DALLE: {n} codes are given, a picture has {self.length}")
        memories = [Memory(self.length - 1) for _ in self.layers]
        x_BLD = self._run(self._embedded(text, self.text_positions, codes_Bn), 1 + self.text_positions, memories)
        return Cache(memories, n), x_BLD[:, -1]

    @torch.no_grad()
    def advance(self, cache: Cache, codes_B: Tensor) -> Tensor:
        """Append one code to each picture of the cache; the states (B, D) that predict the next one.

        Raises:
            ValueError: the code would be the last one, behind which there is none to predict.
        """
        place = cache.codes
        if place >= self.length - 1:
            raise ValueError(f"DALLE: a picture has {self.length} codes, there is none to predict behind the last one")
        x_BLD = (self.codes(codes_B) + self._places(torch.tensor([place], device=codes_B.device)))[:, None]
        for block, kind, memory in zip(self.layers, self.kinds, cache.layers, strict=True):
            x_BLD = block(x_BLD, Pattern(kind, 1 + self.text_positions, self.grid[1]), memory, place)
        cache.codes = place + 1
        return x_BLD[:, 0]


def no_text(n: int, device: torch.device | str = "cpu") -> Text:
    """n empty texts: what a picture is predicted from without a caption."""
    return Text(torch.zeros(n, 0, dtype=torch.int64, device=device), (0,) * n)
