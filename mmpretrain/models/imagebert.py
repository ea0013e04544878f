"""ImageBERT (Qi et al., 2020, https://arxiv.org/abs/2001.07966): one BERT over [words; regions], all regions at one dummy position."""

from __future__ import annotations

from torch import Tensor

from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.fusion import SingleStream
from mmpretrain.nn.regions import RegionEmbedder


class ImageBERT(SingleStream):
    """[CLS] words [SEP] regions in one post-norm transformer; a region is the norm of feature + box + segment + dummy position.

    The parts of the paper (no code was released): ``TextEmbedder(segments=2)``, ``RegionEmbedder(box="xyxya")``, and BERT's
    encoder (see ``Transformer``). Segment and dummy position are rows of the text's tables. The order of the regions has no effect.

    Args:
        text: word embedding.
        regions: embedding of the regions.
        blocks: the transformer.
        std: of the normal initialisation of the pooler, and of the heads that objectives add.
        region_segment: row of the segment table that tells regions from words.
        region_position: row of the position table that all regions share. The paper says that it is a fixed one, not which; by default the
            last, where no text of usual length comes.

    Raises:
        ValueError: the parts differ in width, or the text has no such segment or position.
    """

    def __init__(
        self,
        text: TextEmbedder,
        regions: RegionEmbedder,
        blocks: Transformer,
        std: float = 0.02,
        region_segment: int = 1,
        region_position: int = -1,
    ) -> None:
        super().__init__(text, regions, blocks, std)
        if not -text.max_positions <= region_position < text.max_positions:
            raise ValueError(f"region_position={region_position} is no row of the {text.max_positions} positions of the text")
        self.region_segment, self.region_position = region_segment, region_position
        self.region_row()

    def region_row(self) -> Tensor:
        """Segment and dummy position."""
        return self.text.segment_row(self.region_segment) + self.text.positions.weight[self.region_position]
