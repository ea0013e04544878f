"""One transformer over the text and the image of each sample, one after the other: what every single-stream model runs."""

from __future__ import annotations

from torch import Tensor, nn

from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.heads import Pooler
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.ragged import Ragged, join
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.types import Batch, Spec

KINDS = ("fused", "pooled")


def check_kind(model: nn.Module, kind: str) -> None:
    """
    Raises:
        ValueError: the kind is not ``fused`` or ``pooled``.
    """
    if kind not in KINDS:
        raise ValueError(f"{type(model).__name__} offers kind 'fused' or 'pooled', not {kind!r}")


def fuse(
    transformer: Transformer,
    pooler: Pooler,
    text: Ragged | None,
    image: Ragged | None,
    kind: str,
    image_prefix: int,
    image_first: bool = False,
    mask: Tensor | None = None,
    image_suffix: int = 0,
) -> Fused:
    """States of ``[text; image]``, and the pooled state of the text's first token ([CLS]).

    Args:
        text, image: embedded tokens; one of them may be None, then the other goes alone, and its first token is pooled.
        kind: ``fused``; ``pooled``: the pooled state alone, for which the last block computes one row per sample.
        image_prefix: tokens of the image before its first region or patch.
        image_first: ``[image; text]`` instead.
        mask: which joint token may look at which, see ``Transformer.forward``.
        image_suffix: tokens of the image behind its last region.
    """
    if text is None or image is None:
        joint = image if text is None else text
        if joint is None:
            raise ValueError("nothing to fuse: there is neither text nor image")
        text_rows = image_rows = None
        first_B = joint.layout.first_B(joint.x_ND.device)
    else:
        if image_first:
            joint, image_rows, text_rows = join(image, text)
        else:
            joint, text_rows, image_rows = join(text, image)
        first_B = text_rows.index_select(0, text.layout.first_B(joint.x_ND.device))
    if kind == "pooled":
        return Fused(None, None, pooler(transformer(joint, only=first_B, mask=mask).x_ND))
    x_ND = transformer(joint, mask=mask).x_ND
    pooled_BD = pooler(x_ND.index_select(0, first_B))
    if text is not None:
        text = Ragged(x_ND if text_rows is None else x_ND.index_select(0, text_rows), text.layout)
    if image is not None:
        image = Ragged(x_ND if image_rows is None else x_ND.index_select(0, image_rows), image.layout)
    if image is None:
        return Fused(text, image, pooled_BD)
    return Fused(text, image, pooled_BD, image_prefix, image_suffix=image_suffix)


class SingleStream(nn.Module):
    """Words and regions of each sample in one sequence, [CLS] words [SEP] regions, through one transformer, with BERT's pooler.

    What a system adds of its own is ``region_row`` or ``embed``.

    Args:
        text: word embedding.
        regions: embedding of the regions.
        blocks: the transformer.
        std: of the normal initialisation of the pooler, and of the heads that objectives add.

    Raises:
        ValueError: the parts differ in width.
    """

    def __init__(self, text: TextEmbedder, regions: RegionEmbedder, blocks: Transformer, std: float = 0.02) -> None:
        super().__init__()
        widths = {"text": text.width, "regions": regions.width, "blocks": blocks.width}
        if len(set(widths.values())) > 1:
            raise ValueError(f"{type(self).__name__}'s parts must have one width, got {widths}")
        self.text, self.regions, self.transformer, self.std = text, regions, blocks, std
        self.pooler = Pooler(text.width, std)

    @property
    def spec(self) -> Spec:
        words, regions = self.text.words, self.regions
        return Spec(
            self.text.width,
            KINDS,
            words.num_embeddings,
            token_table=words,
            feature_width=regions.features,
            feature_projection=regions.feature_projection,
            std=self.std,
        )

    def blocks(self) -> list[nn.Module]:
        """The units of sharding, activation checkpointing and compilation."""
        return list(self.transformer.blocks)

    def region_row(self) -> Tensor | None:
        """What every region gets besides feature and box, before the norm: (D,)."""
        return None

    def embed(self, batch: Batch) -> tuple[Ragged | None, Ragged | None, int]:
        """Embedded text, embedded regions, and how many tokens before the regions of each sample are none."""
        text = None if batch.text is None else self.text(batch.text)
        regions, prefix = (None, 0) if batch.regions is None else self.regions(batch.regions, self.region_row())
        return text, regions, prefix

    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        """States after the last block; ``pooled_BD`` reads [CLS] (without text, the first region).

        Args:
            batch: text, regions or both.
            kind: ``fused``; ``pooled``: the same ``pooled_BD`` alone, at less cost (scoring of pairs).

        Raises:
            ValueError: another kind is asked for, or the batch has no text and no regions, or pixels where regions should be.
        """
        check_kind(self, kind)
        name = type(self).__name__
        if batch.regions is None and batch.image is not None:
            raise ValueError(f"{name} reads regions and the batch has pixels alone: make regions with `mmpretrain data regions`")
        text, regions, prefix = self.embed(batch)
        if text is None and regions is None:
            raise ValueError(f"{name} needs a batch with text, regions or both")
        return fuse(self.transformer, self.pooler, text, regions, kind, prefix, image_suffix=self.regions.suffix)
