"""BERT's encoder on a padded batch, spelled out: what packed models are compared with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def block(x: Tensor, p: dict[str, Tensor], mask: Tensor, heads: int, eps: float = 1e-12) -> Tensor:
    """One block under our names of parameters. x (B, L, D), mask (B, L) True where there is a token."""
    b, length, width = x.shape
    q, k, v = F.linear(x, p["attention.qkv.weight"], p["attention.qkv.bias"]).chunk(3, -1)
    q, k, v = (t.view(b, length, heads, -1).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / (width / heads) ** 0.5 + (1.0 - mask[:, None, None].float()) * -10000.0
    y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, length, width)
    y = F.linear(y, p["attention.out.weight"], p["attention.out.bias"])
    x = F.layer_norm(x + y, (width,), p["norm1.weight"], p["norm1.bias"], eps)
    y = F.linear(F.gelu(F.linear(x, p["mlp.up.weight"], p["mlp.up.bias"])), p["mlp.down.weight"], p["mlp.down.bias"])
    return F.layer_norm(x + y, (width,), p["norm2.weight"], p["norm2.bias"], eps)


def encoder(model: nn.Module, x: Tensor, mask: Tensor, heads: int) -> Tensor:
    """All blocks of ``model.transformer``."""
    named = dict(model.named_parameters())
    for d in range(len(model.transformer.blocks)):
        start = f"transformer.blocks.{d}."
        x = block(x, {name.removeprefix(start): p for name, p in named.items() if name.startswith(start)}, mask, heads)
    return x
