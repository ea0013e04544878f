"""Unicoder-VL (Li et al., AAAI 2020, https://arxiv.org/abs/1908.06066): one BERT over [words; regions], features and boxes summed."""

from __future__ import annotations

from torch import Tensor

from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.fusion import SingleStream
from mmpretrain.nn.regions import RegionEmbedder


class UnicoderVL(SingleStream):
    """[CLS] words [SEP] regions in one post-norm transformer; a region is the norm of projected feature plus projected box.

    The parts of the paper (no code was released): ``TextEmbedder(segments=2)``, ``RegionEmbedder(box="xyxya")``, and BERT's
    encoder (see ``Transformer``).

    Args:
        text: word embedding.
        regions: embedding of the regions.
        blocks: the transformer.
        std: of the normal initialisation of the pooler, and of the heads that objectives add.
        region_segment: row of the text's segment table that every region gets before its norm. The paper's formula has none (None), its
            figure shows segments.

    Raises:
        ValueError: the parts differ in width, or the text has no such segment.
    """

    def __init__(
        self, text: TextEmbedder, regions: RegionEmbedder, blocks: Transformer, std: float = 0.02, region_segment: int | None = None
    ) -> None:
        super().__init__(text, regions, blocks, std)
        self.region_segment = region_segment
        self.region_row()

    def region_row(self) -> Tensor | None:
        """The segment, where there is one."""
        return None if self.region_segment is None else self.text.segment_row(self.region_segment)
