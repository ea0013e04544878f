"""VisualBERT (Li et al., 2019, https://arxiv.org/abs/1908.03557): one BERT over [words; regions], with one norm for both."""

from __future__ import annotations

from torch import nn

from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.dropout import Dropout
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.fusion import SingleStream
from mmpretrain.nn.layers import LayerNorm
from mmpretrain.nn.ragged import Ragged
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.types import Batch


class VisualBERT(SingleStream):
    """[CLS] first text [SEP] second text [SEP] regions in one post-norm transformer; a region is feature + position + type.

    The parts of the release: ``TextEmbedder(segments=2, norm_eps=None)``, ``RegionEmbedder(box="none", positions=512, types=2,
    norm_eps=None)``, and BERT's encoder (see ``Transformer``). The position and the type of a region are row 0 of tables of their own, as
    in the release (transformers' default is type 1). For Flickr30k, which has boxes: ``box="xyxywh", combine="concat"``.

    Args:
        text: word embedding without a norm.
        regions: embedding of the regions without a norm.
        blocks: the transformer.
        norm_eps: of the LayerNorm that texts and regions share.
        dropout: after it.
        std: of the normal initialisation of the pooler, and of the heads that objectives add.
        frozen_pooler: the pooler is not trained, as in the release, which starts from BERT's. The paper does not say so.

    Raises:
        ValueError: the parts differ in width, or have norms of their own.
    """

    def __init__(
        self,
        text: TextEmbedder,
        regions: RegionEmbedder,
        blocks: Transformer,
        norm_eps: float = 1e-12,
        dropout: float = 0.0,
        std: float = 0.02,
        frozen_pooler: bool = False,
    ) -> None:
        super().__init__(text, regions, blocks, std)
        for name, part in (("text", text), ("regions", regions)):
            if not isinstance(part.norm, nn.Identity):
                raise ValueError(f"VisualBERT norms texts and regions together: set norm_eps of {name} to null")
        self.norm = LayerNorm(text.width, eps=norm_eps)
        self.dropout = Dropout(dropout) if dropout else nn.Identity()
        self.pooler.requires_grad_(not frozen_pooler)

    def embed(self, batch: Batch) -> tuple[Ragged | None, Ragged | None, int]:
        """Both parts, each row normed: a LayerNorm knows no neighbours, so it is the norm of the joint sequence."""
        text, regions, prefix = super().embed(batch)
        return self._normed(text), self._normed(regions), prefix

    def _normed(self, x: Ragged | None) -> Ragged | None:
        return None if x is None else Ragged(self.dropout(self.norm(x.x_ND)), x.layout)
