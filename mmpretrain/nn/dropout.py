"""Dropout that is not slow on the CPU, where torch draws a float from a slow distribution for every value.

Here four 16-bit numbers come from each random word of 64 bits. What is kept for the backward is one byte a value, not four.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEPS = 1 << 16  # rates are multiples of 1 / _STEPS; values that stay are scaled by what was drawn exactly


class Dropout(nn.Dropout):
    """``nn.Dropout``, drawn by ``dropout``."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)


def dropout(x: Tensor, rate: float, training: bool = True) -> Tensor:
    """Zero each value with probability ``rate`` and scale the others, so that the mean stays. The CPU rounds the rate to 1/65,536."""
    steps = round(rate * _STEPS)
    return _Dropped.apply(x, steps) if training and _slow(x) and 0 < steps < _STEPS else F.dropout(x, rate, training)


def _slow(x: Tensor) -> bool:
    """Whether torch's dropout is."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: int) -> Tensor:
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
        drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
        dropped, ctx.scale = drawn < steps - _STEPS // 2, _STEPS / (_STEPS - steps)
        ctx.save_for_backward(dropped)
        return x.mul(ctx.scale).masked_fill_(dropped, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (dropped,) = ctx.saved_tensors
        return gradient.mul(ctx.scale).masked_fill_(dropped, 0.0), None
