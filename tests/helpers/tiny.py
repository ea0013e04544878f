"""Tiny models with weights that a wrong mapping cannot survive, and small ragged batches."""

from __future__ import annotations

import torch
from torch import nn

from mmpretrain.models.clip import CLIP, ResNetTower, TextTower, ViTTower
from mmpretrain.models.vilt import ViLT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import PatchEmbedder, TextEmbedder
from mmpretrain.types import Batch, Pixels, Text


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norm gains drawn around 1, everything else around 0, running statistics moved; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    norms = (nn.LayerNorm, nn.BatchNorm2d)
    with torch.no_grad():
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                if name.startswith("logit_"):
                    continue
                draw = torch.randn(p.shape, generator=generator)
                fan_in = p[0].numel() if p.dim() > 1 else 1
                if isinstance(module, norms) and name == "weight":
                    p.copy_(1 + 0.2 * draw)
                elif p.dim() > 1:
                    p.copy_(draw * (fan_in**-0.5 if not isinstance(module, nn.Embedding) else 0.5))
                else:
                    p.copy_(0.1 * draw)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(1 + 0.3 * torch.rand(module.running_var.shape, generator=generator))
                module.num_batches_tracked.fill_(7)
    return model.eval()


def vilt(attention: str = "eager", eps: float = 1e-12, patch_limit: int = -1, dropout: float = 0.0) -> ViLT:
    """Width 32, three blocks, patches of 8 pixels on a 4 x 4 table, 60 words."""
    text = TextEmbedder(60, 32, 12, segments=2, norm_eps=1e-12, dropout=dropout)
    image = PatchEmbedder(32, 8, 4, patch_limit=patch_limit, dropout=dropout)
    return shake(ViLT(text, image, Transformer(32, 3, 4, eps=eps, attention=attention, dropout=dropout)))


def clip(tower: str = "vit", activation: str = "quick_gelu", attention: str = "eager", bias: float | None = None) -> CLIP:
    """Width 128 (heads of 64, as open_clip counts them), two blocks, 32 x 32 images, 60 words."""
    if tower == "vit":
        image = ViTTower(32, 8, 128, 2, 2, activation=activation, attention=attention)
    else:
        image = ResNetTower(64, (2, 1, 1, 2), 8, 4, 48)
    text = TextTower(60, 16, 64, 2, 2, activation=activation, attention=attention)
    return shake(CLIP(image, text, 48, logit_bias_init=bias))


LENGTHS = (9, 4, 12, 6)
SIZES = ((24, 40), (32, 16), (16, 16), (40, 24))


def batch(sizes: tuple[tuple[int, int], ...] = SIZES, lengths: tuple[int, ...] = LENGTHS, end: int = 59, seed: int = 1) -> Batch:
    """Ragged texts that end in token ``end`` (zero-padded) and images of several sizes (padded with noise)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for i, n in enumerate(lengths):
        ids[i, :n] = torch.randint(3, end, (n,), generator=generator)
        ids[i, n - 1] = end
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    values = torch.randn(len(sizes), 3, height, width, generator=generator)
    keys = torch.arange(len(lengths), dtype=torch.int64) * 7919 + 13
    return Batch(tuple(f"s{i}" for i in range(len(lengths))), keys, Text(ids, tuple(lengths)), Pixels(values, tuple(sizes)))
