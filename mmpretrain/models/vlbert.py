"""VL-BERT (Su et al., ICLR 2020, https://arxiv.org/abs/1908.08530): one BERT over words and regions, both with a visual and a linguistic
part."""

from __future__ import annotations

from torch import nn

from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.heads import Pooler
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.nn.roi import BoxFeatures
from mmpretrain.nn.vlbert import VLBERTEmbedder, mean_of_kept, with_picture
from mmpretrain.types import Batch, RegionBatch, Spec


class VLBERT(nn.Module):
    """[CLS] words [SEP], the whole picture, its regions and [END] of each sample in one sequence, through BERT's encoder.

    Features are those of the batch, and the whole picture has the mean of what a masker left of them; or they are computed from pixels by a
    ``detector`` that is trained along, the whole picture's too. Batches of text alone are read as such (section 4.1: books and Wikipedia).

    Args:
        embed: the input.
        blocks: the transformer; BERT's is ``norm: post, final_norm: false, eps: 1e-12``.
        detector: makes features of pixels and boxes; None: the features of the batch are read.
        pooler: BERT's pooler on the first token, for heads that read it. Pre-training as published has none.
        std: of the normal initialisation of the pooler, and of the heads that objectives add.

    Raises:
        ValueError: parts that do not fit each other.
    """

    def __init__(
        self, embed: VLBERTEmbedder, blocks: Transformer, detector: BoxFeatures | None = None, pooler: bool = False, std: float = 0.02
    ) -> None:
        super().__init__()
        if embed.width != blocks.width:
            raise ValueError(f"VL-BERT's parts must have one width, got embed {embed.width}, blocks {blocks.width}")
        if detector is not None and detector.features != embed.features:
            raise ValueError(f"the detector gives {detector.features} values for a box, embed takes features={embed.features}")
        if detector is not None and detector.mask_pixels == (embed.mask_visual is not None):
            raise ValueError("either the pixels of masked boxes are zero or their feature is learned: embed.mask_visual or mask_pixels")
        self.embed, self.transformer, self.detector, self.std = embed, blocks, detector, std
        self.pooler = Pooler(embed.width, std) if pooler else None

    @property
    def spec(self) -> Spec:
        words, kinds = self.embed.words, ("fused", "pooled") if self.pooler is not None else ("fused",)
        given, computes = Spec(self.embed.width, kinds, words.num_embeddings, words, std=self.std), self.detector is not None
        return given._replace(feature_width=self.embed.features, computes_features=computes)

    def blocks(self) -> list[nn.Module]:
        """The units of sharding, activation checkpointing and compilation. The detector is none: ranks run it once for each size of picture
        in their batch, and a sharded unit must be entered equally often on all of them. It is gathered with the root."""
        return list(self.transformer.blocks)

    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        """States after the last block, without that of [END]; the first one of each image is the whole picture.

        Args:
            batch: text, regions or both; pixels too where there is a detector.
            kind: ``fused``; with a pooler also ``pooled``: ``pooled_BD`` alone, at less cost.

        Raises:
            ValueError: another kind is asked for, the batch lacks what is read, or its features have another width.
        """
        if kind not in self.spec.kinds:
            raise ValueError(f"VL-BERT offers kind {' or '.join(map(repr, self.spec.kinds))}, not {kind!r}; 'pooled' needs pooler: true")
        if batch.regions is None and batch.image is not None:
            raise ValueError("VL-BERT reads regions and the batch has pixels alone: make regions with `mmpretrain data regions`")
        sequence = self.embed(batch.text, None if batch.regions is None else self._objects(batch, batch.regions))
        if kind == "pooled" and self.pooler is not None:
            return Fused(None, None, self.pooler(self.transformer(sequence.joint, only="first").x_ND))
        x_ND, joint = self.transformer(sequence.joint).x_ND, sequence.joint.layout
        text = image = None
        if batch.text is not None and sequence.text_rows is not None:
            text = Ragged(x_ND.index_select(0, sequence.text_rows), Layout(batch.text.lengths))
        if sequence.objects is not None and sequence.object_rows is not None:
            image = Ragged(x_ND.index_select(0, sequence.object_rows), sequence.objects)
        pooled_BD = None if self.pooler is None else self.pooler(x_ND.index_select(0, joint.first_B(x_ND.device)))
        return Fused(text, image, pooled_BD, 0 if image is None else 1)

    def _objects(self, batch: Batch, regions: RegionBatch) -> RegionBatch:
        """The whole picture and the regions of each sample, with features as the embedder is to see them."""
        if min(regions.lengths, default=0) < 1:
            raise ValueError("every sample needs at least one region")
        if self.detector is None:
            if regions.features_NF.shape[1] != self.embed.features:
                got = f"the regions have features of {regions.features_NF.shape[1]} values, the model takes {self.embed.features}"
                raise ValueError(f"{got}: set features of its embedder")
            return with_picture(regions, self.embed.masked(regions.features_NF, regions), mean_of_kept(regions))
        if batch.image is None:
            raise Misfit("VL-BERT with a detector reads pixels and boxes: set data.show: both")
        objects = with_picture(regions)
        return objects._replace(features_NF=self.embed.masked(self.detector(batch.image, objects), objects))
