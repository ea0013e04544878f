"""BEiT (Bao, Dong, Piao and Wei, ICLR 2022, https://arxiv.org/abs/2106.08254): an encoder of pictures alone, pre-trained by predicting the
codes of masked patches. ViT (arXiv 2010.11929) is the same with absolute positions."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmpretrain.nn.embed import PatchEmbedder
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.nn.vit import VisionTransformer
from mmpretrain.types import Batch, Spec

KINDS = ("fused",)


class BEiT(nn.Module):
    """[class token, patches] of each picture through one pre-norm transformer. It reads no text; what batches have of it is left alone.

    Args:
        image: linear patch embedding; with ``mask_token: true`` for masked image modelling, ``positions: false`` in BEiT.
        blocks: the transformer, with relative positions in BEiT.
        pooling: what stands for the whole picture: ``mean``: the mean over its patches, as in BEiT's fine-tuning (the class token takes
            part in the attention, but nothing is learned from its state); ``cls``: the state of the class token.

    Raises:
        ValueError: the parts do not fit together, or nothing tells where a patch is.
    """

    def __init__(self, image: PatchEmbedder, blocks: VisionTransformer, pooling: Literal["mean", "cls"] = "mean") -> None:
        super().__init__()
        if image.width != blocks.width or pooling not in ("mean", "cls"):
            raise ValueError(f"BEiT's parts must have one width, got {image.width} and {blocks.width}; pooling={pooling!r} is mean or cls")
        if image.positions is None and blocks.kind == "none":
            raise ValueError("BEiT: nothing tells where a patch is: set positions: true of the image or relative: shared of the blocks")
        if image.patch_limit > 0 and blocks.kind != "none":
            raise ValueError(f"BEiT: relative positions need all patches, patch_limit={image.patch_limit} drops some: set patch_limit: -1")
        self.image, self.transformer, self.pooling = image, blocks, pooling

    @property
    def spec(self) -> Spec:
        image = self.image
        return Spec(image.width, KINDS, 0, patch_size=image.patch_size, masks_patches=image.mask_token is not None)

    def blocks(self) -> list[nn.Module]:
        """The units of sharding, activation checkpointing and compilation."""
        return list(self.transformer.blocks)

    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        """States after the final norm: of the patches, and with ``pooling: cls`` of the class token before them; ``pooled_BD`` is what
        stands for the whole picture.

        Args:
            batch: with images.
            kind: ``fused``.

        Raises:
            ValueError: another kind is asked for, or the batch has no image.
        """
        if kind not in KINDS:
            raise ValueError(f"BEiT offers kind 'fused', not {kind!r}")
        if batch.image is None:
            raise Misfit("BEiT reads pictures alone, and the batch has none: set data.show: image, or image+codes to train")
        embedded = self.image(batch.image, batch.draw_keys_B)
        states = self.transformer(embedded, self.image.grids(batch.image), batch.draw_keys_B)
        x_ND, layout = states
        if self.pooling == "cls":
            return Fused(None, states, x_ND.index_select(0, layout.first_B(x_ND.device)), 1)
        patches = _patches(x_ND, layout)
        return Fused(None, patches, _mean(patches), 0)


def _patches(x_ND: Tensor, layout: Layout) -> Ragged:
    """Without the first token of each picture."""
    kept = Layout(tuple(n - 1 for n in layout.lengths))
    if layout.uniform:
        return Ragged(x_ND.view(layout.size, -1, x_ND.shape[1])[:, 1:].flatten(0, 1), kept)
    rows_N = torch.from_numpy(np.delete(np.arange(layout.total, dtype=np.int64), layout.starts[:-1]))
    return Ragged(x_ND.index_select(0, rows_N.to(x_ND.device)), kept)


def _mean(x: Ragged) -> Tensor:
    """Mean over the tokens of each picture, (B, D)."""
    if x.layout.uniform:
        return x.x_ND.view(x.layout.size, -1, x.x_ND.shape[1]).mean(1)
    device = x.x_ND.device
    total_BD = x.x_ND.new_zeros(x.layout.size, x.x_ND.shape[1]).index_add(0, x.layout.sample_N(device), x.x_ND)
    return total_BD / torch.tensor(x.layout.lengths, dtype=total_BD.dtype).to(device)[:, None]
