"""A small model that gives both ``paired`` and ``fused`` states, over pictures, regions or both, as FIBER does."""

from __future__ import annotations

import torch
from helpers.objectives import vocabulary
from torch import Tensor, nn
from torch.nn import functional as F

from mmpretrain.nn.hidden import Fused, Paired
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.types import Batch, Spec

VOCABULARY = vocabulary()


def mean(x_ND: Tensor, layout: Layout) -> Tensor:
    """Of the tokens of each sample, (B, D)."""
    zeros_BD = x_ND.new_zeros(layout.size, x_ND.shape[1])
    lengths_B1 = torch.tensor(layout.lengths, device=x_ND.device, dtype=x_ND.dtype)[:, None]
    return zeros_BD.index_add(0, layout.sample_N(x_ND.device), x_ND) / lengths_B1


class TwoKinds(nn.Module):
    """Bags of words, of pixels and of regions; fused states read both modalities through their product."""

    def __init__(self, width: int = 8, features: int | None = None, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words, self.colours = nn.Embedding(VOCABULARY.size, width), nn.Linear(3, width)
        self.project = nn.Linear(features, width) if features is not None else None
        self.mix = nn.Linear(width, width)
        self.logit_scale = nn.Parameter(torch.tensor([1.0]))
        self.features = features

    @property
    def spec(self) -> Spec:
        width = self.words.embedding_dim
        return Spec(width, ("fused", "paired"), VOCABULARY.size, self.words, embed_dim=width, feature_width=self.features)

    def blocks(self) -> list[nn.Module]:
        return [self.mix]

    def seen(self, batch: Batch) -> tuple[Tensor, Layout]:
        """What is seen of each sample: one token for each region, or one for the picture."""
        if batch.regions is not None and self.project is not None:
            return self.project(batch.regions.features_NF), Layout(batch.regions.lengths)
        pixels_BCHW = batch.image.pixels_BCHW.float() / 255
        means = [x[:, :height, :width].mean((1, 2)) for x, (height, width) in zip(pixels_BCHW, batch.image.sizes, strict=True)]
        return self.colours(torch.stack(means)), Layout((1,) * batch.size)

    def forward(self, batch: Batch, kind: str) -> Fused | Paired:
        text = Layout(batch.text.lengths)
        words_ND, (seen_ND, layout) = self.words(text.pack(batch.text.ids_BT)), self.seen(batch)
        text_BD, image_BD = mean(words_ND, text), mean(seen_ND, layout)
        if kind == "paired":
            return Paired(F.normalize(image_BD, dim=1), F.normalize(text_BD, dim=1), self.logit_scale)
        return Fused(Ragged(words_ND, text), Ragged(seen_ND, layout), torch.tanh(self.mix(text_BD * image_BD)))
