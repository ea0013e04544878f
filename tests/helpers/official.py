"""Two-stream models of released repositories: their parameter names beside ours, weights from a closed formula, and one small batch.

``tests/golden/make_two_streams.py`` fills a released model with these and records what it returns; the tests fill ours and compare.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from mmpretrain.types import Batch, RegionBatch, Text

PRIME = 2**31 - 1
BLOCK = {
    "attention.qkv": tuple(f"attention.self.{name}" for name in ("query", "key", "value")),
    "attention.out": ("attention.output.dense",),
    "norm1": ("attention.output.LayerNorm",),
    "mlp.up": ("intermediate.dense",),
    "mlp.down": ("output.dense",),
    "norm2": ("output.LayerNorm",),
}
EMBEDDERS = {
    "text.words": ("embeddings.word_embeddings",),
    "text.positions": ("embeddings.position_embeddings",),
    "text.segments": ("embeddings.token_type_embeddings",),
    "text.norm": ("embeddings.LayerNorm",),
    "regions.projection": ("v_embeddings.image_embeddings",),
    "regions.box_projection": ("v_embeddings.image_location_embeddings",),
    "regions.norm": ("v_embeddings.LayerNorm",),
    "pooler.text.dense": ("t_pooler.dense",),
    "pooler.image.dense": ("v_pooler.dense",),
}


class Sizes(NamedTuple):
    """Of the tiny models."""

    vocab: int = 30
    positions: int = 12
    features: int = 10
    text: int = 24
    text_heads: int = 4
    text_hidden: int = 40
    text_depth: int = 3
    image: int = 16
    image_heads: int = 2
    image_hidden: int = 16
    image_depth: int = 2
    pooled: int = 20
    pooled_heads: int = 2
    joint_depth: int = 2  # InterBERT's


VILBERT = Sizes()
TASK = 7  # of the golden states with a token of the task
INTERBERT = Sizes(image=24, image_heads=3, image_hidden=40)


def _blocks(ours: str, theirs: str, count: int, start: int = 0) -> dict[str, tuple[str, ...]]:
    return {
        f"{ours}.blocks.{i}.{name}": tuple(f"encoder.{theirs}.{start + i}.{leaf}" for leaf in leaves)
        for i in range(count)
        for name, leaves in BLOCK.items()
    }


def vilbert_names(sizes: Sizes = VILBERT) -> dict[str, tuple[str, ...]]:
    """Our modules -> the modules of vilbert-multi-task whose tensors they hold, one above the other."""
    names = EMBEDDERS | _blocks("text_blocks", "layer", sizes.text_depth) | _blocks("image_blocks", "v_layer", sizes.image_depth)
    for k in range(sizes.image_depth):
        for stream, number, letter in (("image", 1, "v"), ("text", 2, "t")):
            ours, theirs = f"co_attention.blocks.{k}.{stream}", f"encoder.c_layer.{k}"
            names |= {
                f"{ours}.qkv": tuple(f"{theirs}.biattention.{part}{number}" for part in ("query", "key", "value")),
                f"{ours}.out": (f"{theirs}.biOutput.dense{number}",),
                f"{ours}.norm1": (f"{theirs}.biOutput.LayerNorm{number}",),
                f"{ours}.mlp.up": (f"{theirs}.{letter}_intermediate.dense",),
                f"{ours}.mlp.down": (f"{theirs}.{letter}_output.dense",),
                f"{ours}.norm2": (f"{theirs}.{letter}_output.LayerNorm",),
            }
    return names


def interbert_names(sizes: Sizes = INTERBERT) -> dict[str, tuple[str, ...]]:
    """Our modules -> the modules of InterBERT's release."""
    joint, text = _blocks("joint_blocks", "layer", sizes.joint_depth), _blocks("text_blocks", "layer", sizes.text_depth, sizes.joint_depth)
    return EMBEDDERS | joint | text | _blocks("image_blocks", "v_layer", sizes.image_depth)


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that (released) name: float64, uniform, from integers alone, so that every machine has the same.

    Element n is (c n^2 + 48271 n + c) mod 2^31 - 1, put into [-1, 1); c is the CRC-32 of the name. The scale is sqrt(3 / fan-in) for linear
    weights, 0.8 for tables, 0.2 for biases, and 0.3 around 1 for gains.
    """
    n = np.arange(int(np.prod(shape)), dtype=np.int64)
    crc = zlib.crc32(name.encode())
    unit = ((n * n % PRIME) * (crc % PRIME) + 48271 * n + crc) % PRIME / PRIME * 2 - 1
    unit = unit.reshape(shape)
    if ("LayerNorm" in name or "layer_norm" in name) and name.endswith("weight"):
        return 1 + 0.3 * unit
    if len(shape) == 1:
        return 0.2 * unit
    return unit * (0.8 if "embeddings.weight" in name and "image" not in name else (3 / shape[1]) ** 0.5)


def fill(model: nn.Module, names: dict[str, tuple[str, ...]], more: dict[str, torch.Tensor] | None = None) -> nn.Module:
    """Our model with the values of the released one; in eval mode.

    Args:
        more: parameters that are no whole tensors of the release, by our names.

    Raises:
        RuntimeError: ``names`` and ``more`` do not cover the model exactly.
    """
    state = dict(more or {})
    for ours, theirs in names.items():
        module = model.get_submodule(ours)
        for leaf, parameter in module.named_parameters(recurse=False):
            rows = (parameter.shape[0] // len(theirs), *parameter.shape[1:])
            state[f"{ours}.{leaf}"] = torch.from_numpy(np.concatenate([values(f"{one}.{leaf}", rows) for one in theirs])).float()
    model.load_state_dict(state, strict=True)
    return model.eval()


def batch(sizes: Sizes = VILBERT) -> Batch:
    """Three texts with second segments and three pictures, of unequal lengths; one region's feature has been masked to zero."""
    texts, regions = (7, 3, 10), (4, 5, 1)
    n = sum(regions)
    unit = lambda name, *shape: 5 * values(f"input.{name}", (int(np.prod(shape)),)).reshape(shape)  # in [-1, 1)
    ids = ((unit("ids", 3, max(texts)) + 1) / 2 * (sizes.vocab - 1)).astype(np.int64) + 1
    segments = np.arange(max(texts)) >= np.asarray([4, 3, 6])[:, None]
    features = 2 * unit("features", n, sizes.features)
    features[2] = 0
    corners = np.sort((unit("corners", n, 2, 2) + 1) / 2, axis=1).reshape(n, 4)
    pictures = ((48, 64), (100, 40), (33, 57))
    sides = np.repeat([(w, h, w, h) for h, w in pictures], regions, axis=0)
    text = Text(torch.from_numpy(ids), texts, segments_BT=torch.from_numpy(segments.astype(np.int64)))
    packed = RegionBatch(torch.from_numpy(features).float(), torch.from_numpy(corners * sides).float(), regions, pictures)
    return Batch(("a", "b", "c"), torch.arange(3), text, regions=packed)
