"""InterBERT (Lin et al., 2020, https://arxiv.org/abs/2003.13198): one stream over [regions; words], then a stream for each alone."""

from __future__ import annotations

from torch import nn

from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.heads import PairPooler
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Ragged, join
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.nn.streams import firsts, spec_of
from mmpretrain.types import Batch, Spec


class InterBERT(nn.Module):
    """Joint blocks over [global feature, regions, words] of each sample, then text blocks over the words and image blocks over the rest.

    Args:
        text: BERT's embedding. There is no modality embedding.
        regions: features and boxes, with the global feature first.
        joint_blocks: BERT's stack, the interaction module.
        text_blocks, image_blocks: BERT's stacks, the extraction module; the released image stack has 8 heads and dropout 0.2.
        pooled_width: of the pooled state.
        fusion: of the two poolers: ``mul``, ``sum`` or ``text``.
        pooled_dropout: that heads on the pooled state put before their linear layer.
        std: of the initialisation of poolers and heads.

    Raises:
        ValueError: the parts differ in width, or the image has no first token to pool.
    """

    def __init__(
        self,
        text: TextEmbedder,
        regions: RegionEmbedder,
        joint_blocks: Transformer,
        text_blocks: Transformer,
        image_blocks: Transformer,
        pooled_width: int = 1024,
        fusion: str = "mul",
        pooled_dropout: float = 0.1,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        parts = {"text": text, "regions": regions, "joint_blocks": joint_blocks, "text_blocks": text_blocks, "image_blocks": image_blocks}
        widths = {name: part.width for name, part in parts.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"InterBERT's parts must have one width, got {widths}")
        if regions.global_feature != "first":
            raise ValueError("InterBERT pools the global feature, which stands before the regions: set global_feature: first in regions")
        self.text, self.regions = text, regions
        self.joint_blocks, self.text_blocks, self.image_blocks = joint_blocks, text_blocks, image_blocks
        self.pooler = PairPooler(text.width, regions.width, pooled_width, fusion, "relu", std)
        self.pooled_dropout, self.std = pooled_dropout, std

    @property
    def spec(self) -> Spec:
        return spec_of(self.text, self.regions, self.joint_blocks.eps, self.std, self.pooler.width, self.pooled_dropout)

    def blocks(self) -> list[nn.Module]:
        """The units of sharding, activation checkpointing and compilation."""
        return [*self.joint_blocks.blocks, *self.text_blocks.blocks, *self.image_blocks.blocks]

    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        """States after the last block of each stream; ``pooled_BD`` fuses [CLS] and the global feature.

        Args:
            batch: text and regions.
            kind: ``fused``; ``pooled``: the same ``pooled_BD`` alone, at less cost (scoring of pairs).

        Raises:
            ValueError: another kind is asked for, or the batch lacks text or regions.
        """
        if kind not in self.spec.kinds:
            raise ValueError(f"InterBERT offers kind 'fused' or 'pooled', not {kind!r}")
        if batch.text is None or batch.regions is None:
            raise Misfit("InterBERT needs a batch with text and regions; name the sources that have both in `sources`")
        text = self.text(batch.text)
        image, prefix = self.regions(batch.regions)
        image = Ragged(image.x_ND.to(text.x_ND.dtype), image.layout)
        joint, image_rows, text_rows = join(image, text)
        x_ND = self.joint_blocks(joint).x_ND
        only = "first" if kind == "pooled" else None
        text = self.text_blocks(Ragged(x_ND.index_select(0, text_rows), text.layout), only)
        image = self.image_blocks(Ragged(x_ND.index_select(0, image_rows), image.layout), only)
        pooled_BD = self.pooler(firsts(text), firsts(image))
        return Fused(None, None, pooled_BD) if kind == "pooled" else Fused(text, image, pooled_BD, prefix)
