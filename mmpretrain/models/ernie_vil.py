"""ERNIE-ViL (Yu et al., AAAI 2021, https://arxiv.org/abs/2006.16934): text and region streams, co-attention at named positions.

What is new in the paper is what it predicts (scene graphs); the network follows its released configuration, where co-attention blocks have
positions in both streams, the FFN of a co-attention block has the width of its stream's, and LayerNorms have Paddle's eps of 1e-5.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cross import CoAttention
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.heads import PairPooler
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.nn.streams import TwoStreams, check_streams, firsts, spec_of
from mmpretrain.types import Batch, Spec


class ErnieViL(nn.Module):
    """For each co-attention block: the text blocks before its text position, the image blocks before its image position, co-attention.
    Then one more text block and one more image block.

    Args:
        text: word, position and sentence embedding; the released tables have 4 sentence types.
        regions: features and boxes, with the global feature first.
        text_blocks, image_blocks: BERT's stacks, each of its own width.
        co_attention: its width is that of the pooled state.
        text_positions, image_positions: before which text and which image block each co-attention block stands, in order; the last one is
            the last block of its stack. None: the last blocks of the stack (base: 6 .. 11 and 0 .. 5; large: 18 .. 23 and 0 .. 5).
        fusion: of the two poolers: ``mul``, ``sum`` or ``text``.
        pooled_dropout: that heads on the pooled state put before their linear layer.
        std: of the initialisation of poolers and heads.

    Raises:
        ValueError: the parts do not fit together (see ``check_streams``), or the positions do not fit the stacks.
    """

    def __init__(
        self,
        text: TextEmbedder,
        regions: RegionEmbedder,
        text_blocks: Transformer,
        image_blocks: Transformer,
        co_attention: CoAttention,
        text_positions: Sequence[int] | None = None,
        image_positions: Sequence[int] | None = None,
        fusion: str = "mul",
        pooled_dropout: float = 0.1,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        check_streams("ErnieViL", text, regions, text_blocks, image_blocks, co_attention)
        self.text, self.regions = text, regions
        self.text_blocks, self.image_blocks, self.co_attention = text_blocks, image_blocks, co_attention
        self.text_positions = _positions("text_positions", text_positions, text_blocks.depth, co_attention.depth)
        self.image_positions = _positions("image_positions", image_positions, image_blocks.depth, co_attention.depth)
        self.pooler = PairPooler(text.width, regions.width, co_attention.width, fusion, "relu", std)
        self.pooled_dropout, self.std = pooled_dropout, std

    @property
    def spec(self) -> Spec:
        return spec_of(self.text, self.regions, self.co_attention.eps, self.std, self.pooler.width, self.pooled_dropout)

    def blocks(self) -> list[nn.Module]:
        """The units of sharding, activation checkpointing and compilation."""
        return [*self.text_blocks.blocks, *self.image_blocks.blocks, *self.co_attention.blocks]

    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        """States after the last block of each stream; ``pooled_BD`` fuses [CLS] and the global feature.

        Args:
            batch: text and regions.
            kind: ``fused``; ``pooled``: the same ``pooled_BD`` alone, at less cost (scoring of pairs).

        Raises:
            ValueError: another kind is asked for, or the batch lacks text or regions.
        """
        if kind not in self.spec.kinds:
            raise ValueError(f"ErnieViL offers kind 'fused' or 'pooled', not {kind!r}")
        if batch.text is None or batch.regions is None:
            raise Misfit("ErnieViL needs a batch with text and regions; name the sources that have both in `sources`")
        image, prefix = self.regions(batch.regions)
        streams = TwoStreams(self.text(batch.text), image, self.text_blocks, self.image_blocks, self.co_attention)
        text_at = image_at = 0
        for i, (text_end, image_end) in enumerate(zip(self.text_positions, self.image_positions, strict=True)):
            for block in range(text_at, text_end):
                streams.text_block(block)
            for block in range(image_at, image_end):
                streams.image_block(block)
            streams.co_block(i)
            text_at, image_at = text_end, image_end
        streams.text_block(text_at, kind == "pooled")
        streams.image_block(image_at, kind == "pooled")
        pooled_BD = self.pooler(firsts(streams.text), firsts(streams.image))
        if kind == "pooled":
            return Fused(None, None, pooled_BD)
        return Fused(streams.text, streams.image, pooled_BD, prefix)


def _positions(name: str, given: Sequence[int] | None, depth: int, count: int) -> tuple[int, ...]:
    """The positions of ``count`` co-attention blocks in a stack of ``depth`` blocks."""
    found = tuple(range(depth - count, depth)) if given is None else tuple(given)
    ascending = all(a <= b for a, b in itertools.pairwise(found))
    if len(found) != count or not found or found[0] < 0 or not ascending or found[-1] != depth - 1:
        raise ValueError(
            f"ErnieViL: {name} must be {count} blocks in order, one for each co-attention block, that end in the last of {depth} "
            f"({depth - 1}), got {list(found)}"
        )
    return found
