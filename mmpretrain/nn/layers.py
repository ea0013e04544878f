"""Leaf layers that know how they were initialised, so that a model born on the meta device can be filled module by module.

Every module of mmpretrain that owns parameters has ``reset_parameters()``; calling it on all of them, in the order of
``model.modules()``, initialises the model exactly as its constructor did.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Init(NamedTuple):
    """How a weight is drawn.

    ``normal``: N(0, std). ``trunc_normal``: the same, cut at +-2 (timm's default). ``trunc_normal_std``: cut at +-std (BEiT's pre-training
    code). ``xavier``: uniform, as in ``nn.MultiheadAttention``.
    ``torch``: what ``nn.Linear`` and ``nn.Conv2d`` do, weight and bias; ``torch_zero_bias``: the same weight. Other kinds have zero biases.
    """

    kind: str = "trunc_normal"
    std: float = 0.02


KINDS = ("normal", "trunc_normal", "trunc_normal_std", "xavier", "torch", "torch_zero_bias", "zeros")


def fill(weight: Tensor, init: Init) -> None:
    """Draw ``weight`` in place.

    Raises:
        ValueError: the kind is unknown.
    """
    if init.kind == "normal":
        nn.init.normal_(weight, std=init.std)
    elif init.kind == "trunc_normal":
        nn.init.trunc_normal_(weight, std=init.std, a=-2.0, b=2.0)
    elif init.kind == "trunc_normal_std":
        nn.init.trunc_normal_(weight, std=init.std, a=-init.std, b=init.std)
    elif init.kind == "xavier":
        nn.init.xavier_uniform_(weight)
    elif init.kind in ("torch", "torch_zero_bias"):
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    elif init.kind == "zeros":
        nn.init.zeros_(weight)
    else:
        raise ValueError(f"unknown init {init.kind!r}; choose one of {', '.join(KINDS)}")


def fill_bias(bias: Tensor | None, weight: Tensor, init: Init) -> None:
    """Zero the bias, or draw it uniformly within 1 / sqrt(fan-in) for ``torch``."""
    if bias is None:
        return
    if init.kind == "torch":
        bound = 1 / math.sqrt(weight[0].numel())
        nn.init.uniform_(bias, -bound, bound)
    else:
        nn.init.zeros_(bias)


class Linear(nn.Linear):
    """``nn.Linear`` with a declared initialisation."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True, init: Init = Init()) -> None:  # noqa: B008
        self.init = init
        super().__init__(n_in, n_out, bias=bias)

    def reset_parameters(self) -> None:
        fill(self.weight, self.init)
        fill_bias(self.bias, self.weight, self.init)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` with a declared initialisation."""

    def __init__(
        self, n_in: int, n_out: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = False, init: Init = Init("torch")  # noqa: B008
    ) -> None:
        self.init = init
        super().__init__(n_in, n_out, kernel, stride=stride, padding=padding, bias=bias)

    def reset_parameters(self) -> None:
        fill(self.weight, self.init)
        fill_bias(self.bias, self.weight, self.init)


class Embedding(nn.Embedding):
    """``nn.Embedding`` with a declared initialisation."""

    def __init__(self, count: int, width: int, init: Init = Init("normal")) -> None:  # noqa: B008
        self.init = init
        super().__init__(count, width)

    def reset_parameters(self) -> None:
        fill(self.weight, self.init)


class LayerNorm(nn.LayerNorm):
    """LayerNorm whose arithmetic is always fp32, whatever autocast or the type of the weights says; returns the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32 == self.weight.dtype:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(x.dtype)


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose gain may start at zero (the last one of a residual branch)."""

    def __init__(self, width: int, zero_gain: bool = False) -> None:
        self.zero_gain = zero_gain
        super().__init__(width)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.zero_gain:
            nn.init.zeros_(self.weight)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), as silu(1.702 x) / 1.702: the same function with one saved tensor less."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x * 1.702) * (1 / 1.702)


def activation(name: str) -> nn.Module:
    """``gelu`` (exact, erf) or ``quick_gelu``.

    Raises:
        ValueError: the name is neither.
    """
    if name == "gelu":
        return nn.GELU()
    if name == "quick_gelu":
        return QuickGELU()
    raise ValueError(f"unknown activation {name!r}; choose gelu or quick_gelu")
