"""The dVAE's encoder and decoder in plain torch over state dicts with OpenAI's names, written from the description of the architecture, and
weights with gains that a wrong mapping cannot survive."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain.models.dvae import DVAE
from mmpretrain.types import Batch, Pixels


def small(sample: str = "relaxed", widths: tuple[int, ...] = (8, 12, 16), blocks: int = 2, codes: int = 10) -> DVAE:
    """A dVAE for pictures of 8 x 8 with drawn weights and biases, in evaluation mode."""
    torch.manual_seed(0)
    return shaken(DVAE(widths, blocks, codes, 6, 8, sample)).eval()  # type: ignore[arg-type, return-value]


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights larger than at the start and biases drawn, so that residual branches count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            scale = 1.5 * p[0].numel() ** -0.5 if p.dim() > 1 else 0.2
            p.copy_(torch.randn(p.shape, generator=generator) * scale)
    return module


def batch(n: int = 5, size: int = 8, seed: int = 1) -> Batch:
    """Pictures as the data module hands them over, bytes with a normalisation that the model has to look through."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(n, 3, 2, 2, generator=generator).repeat_interleave(size // 2, 2).repeat_interleave(size // 2, 3)
    pixels = (255 * (0.8 * colours + 0.2 * torch.rand(n, 3, size, size, generator=generator))).to(torch.uint8)
    image = Pixels(pixels, ((size, size),) * n, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    return Batch(tuple(f"s{i}" for i in range(n)), torch.arange(n, dtype=torch.int64) * 7919 + 13, image=image)


def rows(batch: Batch, order: list[int]) -> Batch:
    """The samples ``order`` of a batch."""
    image = batch.image
    pixels = Pixels(image.pixels_BCHW[order], tuple(image.sizes[i] for i in order), image.mean, image.std)
    return Batch(tuple(batch.keys[i] for i in order), batch.draw_keys_B[order], image=pixels)


def _conv(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    weight = state[f"{name}.w"]
    return F.conv2d(x, weight, state[f"{name}.b"], padding=weight.shape[-1] // 2)


def _depth(state: Mapping[str, Tensor]) -> tuple[int, int]:
    found = [tuple(map(int, m.groups())) for name in state if (m := re.match(r"blocks\.group_(\d+)\.block_(\d+)\.", name))]
    return max(g for g, _ in found), max(b for _, b in found)


def _block(x: Tensor, state: Mapping[str, Tensor], name: str, layers: int) -> Tensor:
    y = x
    for k in range(1, 5):
        y = _conv(y.clamp(min=0), state, f"{name}.res_path.conv_{k}")
    path = _conv(x, state, f"{name}.id_path") if f"{name}.id_path.w" in state else x
    return path + y / layers**2


def encode(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Mapped pixels (B, 3, H, W) -> logits."""
    groups, blocks = _depth(state)
    x = _conv(x, state, "blocks.input")
    for g in range(1, groups + 1):
        for b in range(1, blocks + 1):
            x = _block(x, state, f"blocks.group_{g}.block_{b}", groups * blocks)
        if g < groups:
            x = torch.stack([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)
    return _conv(x.clamp(min=0), state, "blocks.output.conv")


def decode(state: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """Codes (B, K, h, w) -> the six maps."""
    groups, blocks = _depth(state)
    x = _conv(z, state, "blocks.input")
    for g in range(1, groups + 1):
        for b in range(1, blocks + 1):
            x = _block(x, state, f"blocks.group_{g}.block_{b}", groups * blocks)
        if g < groups:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return _conv(x.clamp(min=0), state, "blocks.output.conv")
