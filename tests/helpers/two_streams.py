"""Tiny two-stream models, batches for them, and their blocks written the plain way on padded tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from helpers import tiny
from helpers.official import INTERBERT, VILBERT, Sizes
from helpers.region_batches import region_batch
from torch import Tensor, nn

from mmpretrain.models.ernie_vil import ErnieViL
from mmpretrain.models.interbert import InterBERT
from mmpretrain.models.lxmert import LXMERT
from mmpretrain.models.vilbert import ViLBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cross import CoAttention, CrossLayers
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.types import Batch, RegionBatch, Text

TEXTS, REGIONS = (6, 3, 9, 4), (4, 1, 6, 3)


def stack(width: int, depth: int, heads: int, hidden: int, attention: str, dropout: float = 0.0, eps: float = 1e-12) -> Transformer:
    options = {"norm": "post", "final_norm": False, "eps": eps, "dropout": dropout, "attention_dropout": dropout, "activation_dropout": 0.0}
    return Transformer(width, depth, heads, hidden / width, attention=attention, init="normal", **options)


def embedders(s: Sizes, segments: int = 2, eps: float = 1e-12, dropout: float = 0.0) -> tuple[TextEmbedder, RegionEmbedder]:
    text = TextEmbedder(s.vocab, s.text, s.positions, segments=segments, norm_eps=eps, dropout=dropout)
    return text, RegionEmbedder(s.image, s.features, norm_eps=eps, global_feature="first", dropout=dropout)


def co_streams(s: Sizes, attention: str, dropout: float = 0.0, eps: float = 1e-12) -> tuple[Transformer, Transformer, CoAttention]:
    """Text blocks, image blocks, and as many co-attention blocks as there are image blocks."""
    co = CoAttention(
        s.text, s.image, s.pooled, s.image_depth, s.pooled_heads, s.text_hidden, s.image_hidden, "gelu", eps, dropout, dropout,
        attention=attention,
    )
    text = stack(s.text, s.text_depth, s.text_heads, s.text_hidden, attention, dropout, eps)
    return text, stack(s.image, s.image_depth, s.image_heads, s.image_hidden, attention, dropout, eps), co


def vilbert(attention: str = "eager", dropout: float = 0.0, sizes: Sizes = VILBERT, **options) -> ViLBERT:
    return ViLBERT(*embedders(sizes, dropout=dropout), *co_streams(sizes, attention, dropout), **options)


def ernie_vil(attention: str = "eager", dropout: float = 0.0, sizes: Sizes = VILBERT, segments: int = 4, eps: float = 1e-5, **options):
    return ErnieViL(*embedders(sizes, segments, eps, dropout), *co_streams(sizes, attention, dropout, eps), **options)


def interbert(attention: str = "eager", dropout: float = 0.0, sizes: Sizes = INTERBERT, **options) -> InterBERT:
    s = sizes
    joint, text = (stack(s.text, depth, s.text_heads, s.text_hidden, attention, dropout) for depth in (s.joint_depth, s.text_depth))
    image = stack(s.image, s.image_depth, s.image_heads, s.image_hidden, attention, 2 * dropout)
    return InterBERT(*embedders(s, dropout=dropout), joint, text, image, pooled_width=s.pooled, **options)


def lxmert(attention: str = "eager", dropout: float = 0.0, frozen_first: bool = True, **options) -> LXMERT:
    """Width 24, 4 heads, 3 language, 2 object and 2 cross-modality layers."""
    text = TextEmbedder(30, 24, 12, segments=2, dropout=dropout, frozen_first=frozen_first)
    regions = RegionEmbedder(24, 10, box="xyxy", combine="mean", branch_eps=1e-12, norm_eps=None, dropout=dropout)
    cross = CrossLayers(24, 2, 4, 40 / 24, dropout=dropout, attention_dropout=dropout, attention=attention)
    return LXMERT(text, regions, stack(24, 3, 4, 40, attention, dropout), stack(24, 2, 4, 40, attention, dropout), cross, **options)


SYSTEMS: Mapping[str, Callable[..., nn.Module]] = {"vilbert": vilbert, "ernie_vil": ernie_vil, "interbert": interbert, "lxmert": lxmert}


def shaken(system: str, *args, **options) -> nn.Module:
    """In eval mode, with weights that a wrong path cannot survive."""
    return tiny.shake(SYSTEMS[system](*args, **options))


def batch(texts: tuple[int, ...] = TEXTS, regions: tuple[int, ...] = REGIONS, seed: int = 1) -> Batch:
    """Ragged texts with second segments, and ragged regions in pictures of several sizes."""
    generator = torch.Generator().manual_seed(seed)
    n, longest = len(texts), max(texts)
    ids = torch.randint(1, 30, (n, longest), generator=generator)
    segments = (torch.arange(longest)[None] >= torch.tensor([length // 2 + 1 for length in texts])[:, None]).long()
    made = region_batch(regions, features=10, seed=seed, labels=False)
    made = made._replace(sizes=tuple((480 + 20 * i, 640 + 30 * i) for i in range(n)))
    keys = torch.arange(n, dtype=torch.int64) * 7919 + 13
    return Batch(tuple(f"s{i}" for i in range(n)), keys, Text(ids, texts, segments_BT=segments), regions=made)


class Padded:
    """A model's tensors by name, and BERT's parts on padded batches: nothing of ``mmpretrain.nn`` runs here."""

    def __init__(self, model: nn.Module, eps: float = 1e-12) -> None:
        self.state, self.eps = dict(model.named_parameters()), eps

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def mlp(self, name: str, x: Tensor) -> Tensor:
        h = self.linear(f"{name}.up", x)
        return self.linear(f"{name}.down", h * 0.5 * (1 + torch.erf(h / math.sqrt(2))))

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, heads: int) -> Tensor:
        b, width = q.shape[0], q.shape[-1]
        q, k, v = (x.view(b, -1, heads, width // heads).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(2, 3) / math.sqrt(width // heads) + (1 - mask[:, None, None].float()) * -10000.0
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, -1, width)

    def block(self, name: str, x: Tensor, mask: Tensor, heads: int) -> Tensor:
        q, k, v = self.linear(f"{name}.attention.qkv", x).chunk(3, -1)
        x = self.norm(f"{name}.norm1", x + self.linear(f"{name}.attention.out", self.attend(q, k, v, mask, heads)))
        return self.norm(f"{name}.norm2", x + self.mlp(f"{name}.mlp", x))

    def co_block(self, name: str, text: Tensor, image: Tensor, masks: tuple[Tensor, Tensor], heads: int) -> tuple[Tensor, Tensor]:
        parts = [self.linear(f"{name}.{stream}.qkv", x).chunk(3, -1) for stream, x in (("text", text), ("image", image))]
        out = []
        for own, stream, x in ((0, "text", text), (1, "image", image)):
            read = self.attend(parts[own][0], parts[1 - own][1], parts[1 - own][2], masks[1 - own], heads)
            x = self.norm(f"{name}.{stream}.norm1", x + self.linear(f"{name}.{stream}.out", read))
            out.append(self.norm(f"{name}.{stream}.norm2", x + self.mlp(f"{name}.{stream}.mlp", x)))
        return out[0], out[1]

    def text(self, text: Text) -> tuple[Tensor, Tensor]:
        """Embedded text (B, T, D) and its mask."""
        x = self.state["text.words.weight"][text.ids_BT] + self.state["text.positions.weight"][: text.ids_BT.shape[1]]
        x = x + self.state["text.segments.weight"][text.segments_BT]
        return self.norm("text.norm", x), torch.arange(x.shape[1])[None] < torch.tensor(text.lengths)[:, None]

    def image(self, regions: RegionBatch) -> tuple[Tensor, Tensor]:
        """Embedded [mean feature, regions] (B, 1 + R, D) and its mask: projections summed, then the norm."""
        rows, longest, start = [], max(regions.lengths) + 1, 0
        for count, (height, width) in zip(regions.lengths, regions.sizes, strict=True):
            features = regions.features_NF[start : start + count]
            x1, y1, x2, y2 = (regions.boxes_N4[start : start + count] / torch.tensor([width, height, width, height])).unbind(1)
            boxes = torch.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)], 1)
            features = torch.cat([features.mean(0, keepdim=True), features])
            boxes = torch.cat([torch.tensor([[0.0, 0, 1, 1, 1]]), boxes])
            x = self.norm("regions.norm", self.linear("regions.projection", features) + self.linear("regions.box_projection", boxes))
            rows.append(F.pad(x, (0, 0, 0, longest - 1 - count), value=3.0))
            start += count
        return torch.stack(rows), torch.arange(longest)[None] < torch.tensor(regions.lengths)[:, None] + 1

    def pooled(self, text: Tensor, image: Tensor) -> Tensor:
        """The product of two poolers with ReLU."""
        return self.linear("pooler.text.dense", text[:, 0]).clamp_min(0) * self.linear("pooler.image.dense", image[:, 0]).clamp_min(0)
