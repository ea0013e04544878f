"""UNITER (Chen et al., ECCV 2020, https://arxiv.org/abs/1909.11740): one BERT over [words; regions].

VILLA (Gan et al., NeurIPS 2020, https://arxiv.org/abs/2006.06195) trains it with adversarial deltas on word embeddings and features.
"""

from __future__ import annotations

from torch import Tensor

from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.fusion import SingleStream
from mmpretrain.nn.regions import RegionEmbedder


class UNITER(SingleStream):
    """[CLS] words [SEP] regions in one post-norm transformer; a region is the norm of normed feature + normed box + segment 1.

    The parts of the paper, every LayerNorm with eps 1e-12: ``TextEmbedder(segments=2)``, ``RegionEmbedder(box="xyxywha",
    branch_eps=1e-12, mask_embedding=True)``, and BERT's encoder (see ``Transformer``). A masked region is a zero feature plus the mask
    embedding, before the projection. The head that regresses features is tied to ``spec.feature_projection``.

    Args:
        text: word embedding with a segment table of two rows or more: words have those of the batch, 0 by default, regions have 1.
        regions: embedding of the regions.
        blocks: the transformer.
        std: of the normal initialisation of the pooler, and of the heads that objectives add.

    Raises:
        ValueError: the parts differ in width, or the text has no segment 1.
    """

    def __init__(self, text: TextEmbedder, regions: RegionEmbedder, blocks: Transformer, std: float = 0.02) -> None:
        super().__init__(text, regions, blocks, std)
        text.segment_row(1)

    def region_row(self) -> Tensor:
        """Segment 1 of the text's table."""
        return self.text.segment_row(1)
