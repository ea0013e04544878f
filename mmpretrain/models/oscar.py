"""Oscar (Li et al., ECCV 2020, https://arxiv.org/abs/2004.06165) and Oscar+ (VinVL, Zhang et al., CVPR 2021, https://arxiv.org/abs/2101.00529):
one BERT over [words; object tags; regions]."""

from __future__ import annotations

from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.fusion import SingleStream
from mmpretrain.nn.regions import RegionEmbedder


class Oscar(SingleStream):
    """[CLS] words [SEP] tags [SEP] regions in one post-norm transformer.

    Tags are words: the second text of a pair, with segment 1 and positions that go on. A region has neither segment nor position. The
    parts of the release: ``TextEmbedder(segments=2)``, ``RegionEmbedder(box="xyxywh", combine="concat", norm_eps=None)`` for Oscar, with
    ``norm_eps=1e-12`` for Oscar+, and BERT's encoder (see ``Transformer``). Feature and box have one projection, so that there is no
    ``spec.feature_projection``.

    Args:
        text: word embedding with a segment table of two rows or more.
        regions: embedding of the regions.
        blocks: the transformer.
        std: of the normal initialisation of the pooler, and of the heads that objectives add.

    Raises:
        ValueError: the parts differ in width, or the text has no segment for tags.
    """

    def __init__(self, text: TextEmbedder, regions: RegionEmbedder, blocks: Transformer, std: float = 0.02) -> None:
        super().__init__(text, regions, blocks, std)
        text.segment_row(1)
