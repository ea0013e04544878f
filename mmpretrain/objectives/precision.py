"""Losses are computed in fp32 whatever the precision of the model: logits, logarithms and transport plans do not survive bf16."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """``x`` in fp32, or unchanged when it is fp64."""
    return x if x.dtype == torch.float64 else x.float()


def full_precision(device: torch.device) -> torch.autocast:
    """A context in which autocast is off on ``device``."""
    return torch.autocast(device.type, enabled=False)


def scalar(value: float, device: torch.device) -> Tensor:
    """A float32 scalar made on ``device`` without a copy from the host."""
    return torch.full((), float(value), dtype=torch.float32, device=device)
