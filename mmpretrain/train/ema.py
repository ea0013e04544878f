"""Exponential moving average of the trained parameters, sharded like them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class Ema:
    """average <- decay * average + (1 - decay) * parameter, after every ``every``-th optimiser step.

    Args:
        module: its trained parameters are averaged.
        decay: in (0, 1).
        state: full tensors by name to continue from; None starts at the parameters.
        every: optimiser steps from one update to the next (DALL-E, arXiv 2102.12092, appendix B.2: 25).

    Raises:
        ValueError: ``decay`` or ``every`` out of range, or ``state`` lacks a parameter.
    """

    def __init__(self, module: nn.Module, decay: float, state: Mapping[str, Tensor] | None = None, every: int = 1) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"model.ema_decay={decay} must lie between 0 and 1")
        if every < 1:
            raise ValueError(f"model.ema_every={every} must be at least 1")
        self.decay, self.every = decay, every
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        if state is not None:
            self.load(state)

    @torch.no_grad()
    def update(self, done: int) -> None:
        """Call once after each optimiser step; ``done``: steps of the run so far, by which a resumed run keeps the rhythm."""
        if done % self.every:
            return
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """Full tensors on the CPU; every rank must call it."""
        full = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in self.average.items()}
        return {name: t.detach().cpu().clone() for name, t in full.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from full tensors."""
        if missing := set(self.average) - set(state):
            raise ValueError(f"the checkpoint's EMA lacks {sorted(missing)[:3]}")
        for name, average in self.average.items():
            value = state[name].to(average.device, average.dtype)
            average.copy_(distribute_tensor(value, average.device_mesh, average.placements) if isinstance(average, DTensor) else value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages in place of the parameters, for evaluation."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            held = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(held)
