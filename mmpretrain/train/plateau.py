"""A rate that is halved each time the loss has come to rest (DALL-E, arXiv 2102.12092, appendix B.2: five times, by hand)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from mmpretrain.train.meter import Meter
from mmpretrain.train.schedule import Schedule

LOSS = "loss"


class Plateau(Schedule):
    """Linear warm-up from 0, then constant, times ``drop`` whenever the loss has come to rest, ``times`` times at most.

    It has come to rest when ``patience`` looks in a row found no mean loss below ``1 - threshold`` times the best one so far. A look at
    the loss of training is the mean over ``window`` optimiser steps, over all ranks, of steps whose loss was finite; steps of the warm-up
    are not looked at. A look at the loss of validation is one validation (of the first set). So every rank has the same rate, and a
    resumed run those of an unbroken one: what was seen is part of a checkpoint (but a validation that was interrupted is not made again).

    Args:
        warmup: steps (int), or share of all steps (float below 1).
        total: steps of the run; None: what the trainer runs.
        drop: factor at every drop.
        times: most drops.
        reads: ``train`` or ``val``.
        window: optimiser steps of one look at the loss of training.
        patience: looks without a better loss before a drop.
        threshold: share by which a loss must be below the best to be better.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self,
        warmup: int | float = 0,
        total: int | None = None,
        drop: float = 0.5,
        times: int = 5,
        reads: Literal["train", "val"] = "train",
        window: int = 1000,
        patience: int = 5,
        threshold: float = 1e-3,
    ) -> None:
        super().__init__(warmup, total)
        if not 0 < drop < 1 or times < 0 or window < 1 or patience < 1 or not 0 <= threshold < 1:
            raise ValueError(
                f"schedule: drop={drop} and threshold={threshold} must lie in (0, 1) and [0, 1), times={times} must not be negative, "
                f"window={window} and patience={patience} must be at least 1"
            )
        if reads not in ("train", "val"):
            raise ValueError(f"schedule.reads={reads!r}; choose train or val")
        self.drop, self.times, self.reads, self.follows_validation = drop, times, reads, reads == "val"
        self.window, self.patience, self.threshold = window, patience, threshold
        self.drops, self.best, self.waited = 0, math.inf, 0
        self.steps, self.seen = 0, Meter()

    def factor(self, step: int, total: int) -> float:
        """Factor of the base rate, with the drops so far."""
        warmup = self.warmup_steps(total)
        return float(self.drop**self.drops * (min(1.0, step / warmup) if warmup else 1.0))

    def observe(self, step: int, total: int, loss: Tensor, finite: Tensor) -> None:
        """The loss of optimiser step ``step``. Every rank calls it after every step."""
        if self.reads != "train" or self.drops >= self.times or step < self.warmup_steps(total):
            return
        self.seen.add(LOSS, torch.where(finite, loss, torch.zeros_like(loss)), finite.to(loss.dtype))
        self.steps += 1
        if self.steps >= self.window:
            mean = self.seen.read(loss.device).get(LOSS)
            self.steps = 0
            if mean is not None:
                self._look(mean)

    def validated(self, loss: float) -> None:
        """The loss of a validation, the same on every rank."""
        if self.reads == "val" and self.drops < self.times and math.isfinite(loss):
            self._look(loss)

    def _look(self, loss: float) -> None:
        # of a negative loss, a likelihood of continuous values, a better one is farther from zero
        if loss < self.best - self.threshold * abs(self.best) or math.isinf(self.best):
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.drops, self.waited = self.drops + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """What was seen, over all ranks. Every rank must call it."""
        pairs = self.seen.pairs
        device = next(iter(pairs.values())).device if pairs else torch.device("cpu")
        best = None if math.isinf(self.best) else self.best
        return {"drops": self.drops, "best": best, "waited": self.waited, "steps": self.steps, "seen": self.seen.state(device)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` gave; of this configuration are the rules."""
        self.drops, self.waited, self.steps = int(state["drops"]), int(state["waited"]), int(state["steps"])
        self.best = math.inf if state["best"] is None else float(state["best"])
        self.seen = Meter()
        self.seen.load(state["seen"])
