"""The number guard: all ranks agree, before the optimiser moves anything, whether a step is finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmpretrain.train import distributed
from mmpretrain.types import Batch


class NonFiniteStep(RuntimeError):
    """A loss or a gradient norm is NaN or infinite."""


def all_finite(finite_K: Tensor, norm: Tensor | None) -> bool:
    """True when the losses of this step and its gradient norm are finite on every rank. One small collective and one host read."""
    flag = finite_K.all()
    if norm is not None:
        flag = flag & torch.isfinite(norm).to(flag.device)
    return bool(distributed.min_(flag.to(torch.int32)).item())


def suspects(batches: Sequence[Batch], finite_K: Tensor) -> list[str]:
    """Keys of the samples of the micro-batches whose loss is not finite, on all ranks; if every loss is finite (the gradient is not),
    the keys of the whole step. Every rank must call it."""
    bad = [key for batch, fine in zip(batches, finite_K.tolist(), strict=True) if not fine for key in batch.keys]
    everywhere = distributed.gather_objects((bad, [key for batch in batches for key in batch.keys]))
    named = [key for keys, _ in everywhere for key in keys]
    return named or [key for _, keys in everywhere for key in keys]


def describe(step: int, loss: float, norm: float, keys: Sequence[str]) -> str:
    """One line for the log or the error."""
    shown = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
    return f"step {step}: loss {loss:g}, gradient norm {norm:g} is not finite; samples: {shown}"
