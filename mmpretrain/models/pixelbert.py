"""Pixel-BERT (Huang et al. 2020, https://arxiv.org/abs/2004.00849): words and the pixels of a convolutional map, trained end to end."""

from __future__ import annotations

from torch import nn

from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.fusion import KINDS, check_kind, fuse
from mmpretrain.nn.heads import Pooler
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.pixels import PixelEmbedder
from mmpretrain.types import Batch, Spec


class PixelBERT(nn.Module):
    """[CLS] words [SEP] pixels of each sample in one sequence, through BERT's encoder.

    The pixels of a picture are a set: they have no position. In training 100 of them are drawn for every step (section 3.2.3).

    Args:
        text: BERT's word embedding.
        image: convolutional network and its pixels.
        blocks: the transformer; BERT's is ``norm: post, final_norm: false, eps: 1e-12``.
        std: of the normal initialisation of the pooler, and of the heads that objectives add.

    Raises:
        ValueError: the parts differ in width.
    """

    def __init__(self, text: TextEmbedder, image: PixelEmbedder, blocks: Transformer, std: float = 0.02) -> None:
        super().__init__()
        widths = {"text": text.width, "image": image.width, "blocks": blocks.width}
        if len(set(widths.values())) > 1:
            raise ValueError(f"Pixel-BERT's parts must have one width, got {widths}")
        self.text, self.image, self.transformer, self.std = text, image, blocks, std
        self.pooler = Pooler(text.width, std)

    @property
    def spec(self) -> Spec:
        words = self.text.words
        return Spec(self.text.width, KINDS, words.num_embeddings, token_table=words, patch_size=self.image.patch_size, std=self.std)

    def blocks(self) -> list[nn.Module]:
        """The units of sharding, activation checkpointing and compilation. The convolutional network is none: ranks run it once for each
        size in their batch, and a sharded unit must be entered equally often on all of them. It is gathered with the root."""
        return list(self.transformer.blocks)

    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        """States after the last block; ``pooled_BD`` reads [CLS] (without text, the first pixel).

        Args:
            batch: text, pixels or both.
            kind: ``fused``; ``pooled``: the same ``pooled_BD`` alone, at less cost (scoring of pairs).

        Raises:
            ValueError: another kind is asked for, or the batch has neither text nor pixels.
        """
        check_kind(self, kind)
        if batch.text is None and batch.image is None:
            raise ValueError("Pixel-BERT needs a batch with text, pixels or both; regions are not read")
        text = None if batch.text is None else self.text(batch.text)
        image = None if batch.image is None else self.image(batch.image, batch.draw_keys_B)
        return fuse(self.transformer, self.pooler, text, image, kind, image_prefix=0)
