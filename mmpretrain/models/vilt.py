"""ViLT (Kim et al., ICML 2021, https://arxiv.org/abs/2102.03334): one transformer over [words; patches], no convolution, no regions."""

from __future__ import annotations

from torch import Tensor, nn

from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import PatchEmbedder, TextEmbedder
from mmpretrain.nn.fusion import KINDS, check_kind, fuse
from mmpretrain.nn.heads import Pooler
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.layers import Embedding
from mmpretrain.nn.ragged import Ragged
from mmpretrain.types import Batch, Spec


class ViLT(nn.Module):
    """Words and patches of each sample in one sequence, [text CLS, words, image CLS, patches], through one pre-norm transformer.

    Args:
        text: BERT-like word embedding.
        image: linear patch embedding.
        blocks: the transformer, with a final norm.
        modal_types: rows of the modality table: 0 text, 1 image; a third row serves a second image (NLVR2).
        pooler_std: of the pooler's initialisation. The paper's 0.02 suits its width of 768; a narrow model learns to match much sooner
            with about 1 / sqrt(width).

    Raises:
        ValueError: the parts differ in width.
    """

    def __init__(
        self, text: TextEmbedder, image: PatchEmbedder, blocks: Transformer, modal_types: int = 2, pooler_std: float = 0.02
    ) -> None:
        super().__init__()
        widths = {"text": text.width, "image": image.width, "blocks": blocks.width}
        if len(set(widths.values())) > 1:
            raise ValueError(f"ViLT's parts must have one width, got {widths}")
        self.text, self.image, self.transformer = text, image, blocks
        self.modal_types = Embedding(modal_types, text.width)
        self.pooler = Pooler(text.width, pooler_std)

    @property
    def spec(self) -> Spec:
        words = self.text.words
        image, masks = self.image, self.image.mask_token is not None
        return Spec(self.text.width, KINDS, words.num_embeddings, token_table=words, patch_size=image.patch_size, masks_patches=masks)

    def blocks(self) -> list[nn.Module]:
        """The units of sharding, activation checkpointing and compilation."""
        return list(self.transformer.blocks)

    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        """States after the final norm; ``pooled_BD`` reads the first token of the sequence (the text's [CLS]; without text, the image's).

        Args:
            batch: text, images or both.
            kind: ``fused``; ``pooled``: the same ``pooled_BD`` alone, at less cost (scoring of pairs).

        Raises:
            ValueError: another kind is asked for, or the batch has neither text nor image.
        """
        check_kind(self, kind)
        if batch.text is None and batch.image is None:
            raise ValueError("ViLT needs a batch with text, images or both")
        text = None if batch.text is None else self._typed(self.text(batch.text), 0)
        image = None if batch.image is None else self._typed(self.image(batch.image, batch.draw_keys_B), 1)
        return fuse(self.transformer, self.pooler, text, image, kind, image_prefix=1)

    def _typed(self, x: Ragged, modality: int) -> Ragged:
        row_D: Tensor = self.modal_types.weight[modality]
        return Ragged(x.x_ND + row_D, x.layout)
