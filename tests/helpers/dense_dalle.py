"""A plain twin of DALL-E's transformer: one sample at a time, tables of all pairs written out by the rules, no cache, no windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from helpers.tiny import shake
from torch import Tensor

from mmpretrain.models.dalle import DALLE
from mmpretrain.types import Batch, CodeBatch, Text

VOCAB, CODES, POSITIONS, GRID, KERNEL = 30, 20, 6, (4, 5), 3
LENGTHS = (6, 0, 3)


def model(depth: int = 6, attention: str = "sparse", width: int = 16, **options) -> DALLE:
    """Two heads, weights drawn so that nothing is small."""
    return shake(DALLE(width, depth, 2, VOCAB, CODES, POSITIONS, GRID, attention=attention, kernel=KERNEL, **options))


def batch(lengths: tuple[int, ...] = LENGTHS, seed: int = 1) -> Batch:
    """Texts of these lengths, what is behind them noise, and codes."""
    generator = torch.Generator().manual_seed(seed)
    n = len(lengths)
    ids_BT = torch.randint(5, VOCAB, (n, max(lengths)), generator=generator)
    codes_N = torch.randint(0, CODES, (n * GRID[0] * GRID[1],), generator=generator)
    keys_B = torch.arange(n, dtype=torch.int64) * 7919 + 13
    return Batch(tuple(f"s{i}" for i in range(n)), keys_B, Text(ids_BT, lengths), codes=CodeBatch(codes_N, (GRID,) * n))


def allowed(layer: int, depth: int, text: int, n: int, columns: int, kernel: int, attention: str) -> Tensor:
    """Which pairs layer ``layer`` of 1 to ``depth`` computes, bool (L, L): appendix B.1, read again."""
    i = torch.arange(text + n)
    query, key = i[:, None], i[None, :]
    image_q, image_k = query - text, key - text
    back = image_q - image_k
    if attention == "full":
        image = back >= 0
    elif layer == depth:
        half = kernel // 2
        image = torch.zeros_like(back, dtype=torch.bool)
        for up in range(half + 1):
            image |= ((back - up * columns).abs() <= half) & (back >= 0)
    elif (layer - 2) % 4 == 0:
        image = (back >= 0) & (back % columns == 0)
    else:
        image = (back >= 0) & (back <= columns)
    return torch.where(key < text, (query >= text) | (key <= query), (query >= text) & image)


def states(model: DALLE, ids: list[int], codes: list[int]) -> Tensor:
    """States of the last block on [start, the text and its paddings, codes]: (1 + T + n, D)."""
    weights, positions, columns = dict(model.named_parameters()), model.text_positions, model.grid[1]
    padded = [ids[p] if p < len(ids) else model.vocab_size + p for p in range(positions)]
    rows = [weights["start.weight"][0]]
    rows += [weights["words.weight"][token] + weights["word_positions.weight"][p] for p, token in enumerate(padded)]
    at = lambda p: weights["rows.weight"][p // columns] + weights["columns.weight"][p % columns]
    rows += [weights["codes.weight"][code] + at(p) for p, code in enumerate(codes)]
    x, depth = torch.stack(rows), len(model.kinds)
    for layer, block in enumerate(model.layers, 1):
        attention = "full" if model.kinds[0] == "full" else "sparse"
        mask = allowed(layer, depth, 1 + positions, len(codes), columns, model.kernel, attention)
        heads = block.attention.heads
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in block.attention.qkv(block.norm1(x)).chunk(3, -1))
        scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        y = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
        x = x + F.linear(y.transpose(0, 1).flatten(1), block.attention.out.weight, block.attention.out.bias)
        hidden = block.mlp.up(block.norm2(x))
        x = x + block.mlp.down(hidden * torch.sigmoid(1.702 * hidden))
    return x
