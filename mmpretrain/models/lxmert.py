"""LXMERT (Tan and Bansal, EMNLP 2019, https://arxiv.org/abs/1908.07490): language and object encoders, then cross-modality layers."""

from __future__ import annotations

from torch import nn

from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cross import CrossLayers
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.heads import Pooler
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Ragged
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.nn.streams import firsts, spec_of
from mmpretrain.types import Batch, Spec


class LXMERT(nn.Module):
    """All language blocks, all object blocks, then the cross-modality layers, all of one width.

    Args:
        text: BERT's embedding; ``frozen_first`` as in the released code, whose position of [CLS] and type 0 get no gradient.
        regions: features and boxes, normed each and averaged.
        text_blocks: the language encoder.
        image_blocks: the object-relationship encoder.
        cross: the cross-modality layers.
        std: of the initialisation of the pooler and of heads.

    Raises:
        ValueError: the parts differ in width.
    """

    def __init__(
        self,
        text: TextEmbedder,
        regions: RegionEmbedder,
        text_blocks: Transformer,
        image_blocks: Transformer,
        cross: CrossLayers,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        parts = {"text": text, "regions": regions, "text_blocks": text_blocks, "image_blocks": image_blocks, "cross": cross}
        widths = {name: part.width for name, part in parts.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"LXMERT's parts must have one width, got {widths}")
        self.text, self.regions = text, regions
        self.text_blocks, self.image_blocks, self.cross = text_blocks, image_blocks, cross
        self.pooler = Pooler(text.width, std)
        self.std = std

    @property
    def spec(self) -> Spec:
        return spec_of(self.text, self.regions, self.cross.eps, self.std)

    def blocks(self) -> list[nn.Module]:
        """The units of sharding, activation checkpointing and compilation."""
        return [*self.text_blocks.blocks, *self.image_blocks.blocks, *self.cross.blocks]

    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        """States after the last cross-modality layer; ``pooled_BD`` reads [CLS].

        Args:
            batch: text and regions.
            kind: ``fused``; ``pooled``: the same ``pooled_BD`` alone, at less cost (scoring of pairs).

        Raises:
            ValueError: another kind is asked for, or the batch lacks text or regions.
        """
        if kind not in self.spec.kinds:
            raise ValueError(f"LXMERT offers kind 'fused' or 'pooled', not {kind!r}")
        if batch.text is None or batch.regions is None:
            raise Misfit("LXMERT needs a batch with text and regions; name the sources that have both in `sources`")
        text = self.text(batch.text)
        image, prefix = self.regions(batch.regions)
        image = Ragged(image.x_ND.to(text.x_ND.dtype), image.layout)
        text, image = self.text_blocks(text), self.image_blocks(image)
        text_ND, image_ND = self.cross(text, image, first=kind == "pooled")
        if image_ND is None:
            return Fused(None, None, self.pooler(text_ND))
        text, image = Ragged(text_ND, text.layout), Ragged(image_ND, image.layout)
        return Fused(text, image, self.pooler(firsts(text)), prefix, image_suffix=self.regions.suffix)
