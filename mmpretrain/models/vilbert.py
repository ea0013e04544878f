"""ViLBERT (Lu et al., NeurIPS 2019, https://arxiv.org/abs/1908.02265): a text and a region stream that meet in co-attention blocks."""

from __future__ import annotations

from torch import nn

from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cross import CoAttention
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.heads import PairPooler
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.layers import Embedding, Init
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Ragged
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.nn.streams import TwoStreams, check_streams, firsts, spec_of, with_second, without_second
from mmpretrain.types import Batch, Spec, Text


class ViLBERT(nn.Module):
    """Text blocks alone, then for each co-attention block: co-attention, one image block, one text block.

    With 12 text, 6 image and 6 co-attention blocks the order is T0 .. T5, C0, V0, T6, C1, V1, T7, .. C5, V5, T11: the first co-attention
    reads the embedded regions. Blocks of a stream beyond the number of co-attention blocks stand before them.

    Args:
        text: BERT's embedding.
        regions: features and boxes, with the global feature first.
        text_blocks, image_blocks: BERT's stacks, each of its own width.
        co_attention: at most as many blocks as either stack.
        fusion: of the two poolers: ``mul``, ``sum`` or ``text``.
        pooled_dropout: that heads on the pooled state put before their linear layer.
        std: of the initialisation of poolers, heads and tasks.
        tasks: rows of a table of tasks, one of which stands behind [CLS], without position and segment, in every text (12-in-1, arXiv
            1912.02315; its release has 20). Its state is not among those of the text. 0: none.
        task: that row; the release numbers its tasks from 1.

    Raises:
        ValueError: the parts do not fit together (see ``check_streams``), there are more co-attention blocks than text or image blocks, or
            there is no such task.
    """

    def __init__(
        self,
        text: TextEmbedder,
        regions: RegionEmbedder,
        text_blocks: Transformer,
        image_blocks: Transformer,
        co_attention: CoAttention,
        fusion: str = "mul",
        pooled_dropout: float = 0.1,
        std: float = 0.02,
        tasks: int = 0,
        task: int = 0,
    ) -> None:
        super().__init__()
        check_streams("ViLBERT", text, regions, text_blocks, image_blocks, co_attention)
        if co_attention.depth > min(text_blocks.depth, image_blocks.depth):
            raise ValueError(
                f"ViLBERT has a text and an image block after each of {co_attention.depth} co-attention blocks, "
                f"got {text_blocks.depth} text and {image_blocks.depth} image blocks: raise their depth or lower that of co_attention"
            )
        self.text, self.regions = text, regions
        self.text_blocks, self.image_blocks, self.co_attention = text_blocks, image_blocks, co_attention
        self.pooler = PairPooler(text.width, regions.width, co_attention.width, fusion, "relu", std)
        self.pooled_dropout, self.std = pooled_dropout, std
        if not 0 <= task < max(tasks, 1):
            raise ValueError(f"ViLBERT has no task {task} in a table of {tasks}: raise tasks or lower task")
        self.tasks, self.task = Embedding(tasks, text.width, Init("normal", std)) if tasks else None, task

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
            raise ValueError(f"ViLBERT offers kind 'fused' or 'pooled', not {kind!r}")
        if batch.text is None or batch.regions is None:
            raise Misfit("ViLBERT needs a batch with text and regions; name the sources that have both in `sources`")
        image, prefix = self.regions(batch.regions)
        streams = TwoStreams(self._embedded(batch.text), image, self.text_blocks, self.image_blocks, self.co_attention)
        text_alone, image_alone = (stack.depth - self.co_attention.depth for stack in (self.text_blocks, self.image_blocks))
        for i in range(text_alone):
            streams.text_block(i)
        for i in range(image_alone):
            streams.image_block(i)
        for i in range(self.co_attention.depth):
            first = kind == "pooled" and i == self.co_attention.depth - 1
            streams.co_block(i)
            streams.image_block(image_alone + i, first)
            streams.text_block(text_alone + i, first)
        pooled_BD = self.pooler(firsts(streams.text), firsts(streams.image))
        if kind == "pooled":
            return Fused(None, None, pooled_BD)
        text = streams.text if self.tasks is None else without_second(streams.text)
        return Fused(text, streams.image, pooled_BD, prefix)

    def _embedded(self, text: Text) -> Ragged:
        """Embedded words, behind the first one the task where there are tasks."""
        x = self.text(text)
        if self.tasks is None:
            return x
        task_BD = self.tasks.weight[self.task].expand(x.layout.size, -1)
        return with_second(x, self.text.dropout(self.text.norm(task_BD)))
