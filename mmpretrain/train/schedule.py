"""Learning-rate schedules: factors of the base rate, as the papers' code has them.

``factor(step, total)`` is the factor during optimiser step ``step`` (0-based). All rates of a run follow one factor; groups differ
by their multiplier. ``warmup`` is a number of steps (int) or a share of the run (float in [0, 1)).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Schedule(ABC):
    """Base of the schedules: ``factor``, and hooks that may stay empty.

    Args:
        warmup: steps (int), or share of all steps (float below 1).
        total: steps of the run; None: what the trainer runs.
    """

    follows_validation = False  # its state changes with validations

    def __init__(self, warmup: int | float = 0, total: int | None = None) -> None:
        if warmup < 0 or (isinstance(warmup, float) and warmup >= 1):
            raise ValueError(f"schedule.warmup={warmup}: steps as an int, or a share of the run as a float in [0, 1)")
        self.warmup, self.total = warmup, total

    def warmup_steps(self, total: int) -> int:
        """Steps of warm-up in a run of ``total`` steps."""
        return int(self.warmup * total) if isinstance(self.warmup, float) else self.warmup

    @abstractmethod
    def factor(self, step: int, total: int) -> float:
        """Factor of the base rate during optimiser step ``step`` of ``total``."""

    def observe(self, step: int, total: int, loss: torch.Tensor, finite: torch.Tensor) -> None:  # noqa: B027  (optional)
        """The loss of optimiser step ``step`` (this rank's share; the mean over ranks is the loss), and whether it is finite. Called on
        every rank, for schedules that follow the loss."""

    def validated(self, loss: float) -> None:  # noqa: B027  (optional)
        """The loss of a validation, the same on every rank, for schedules that follow it."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know beside the step: plain types. Every rank must call it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  (optional)
        """Inverse of ``state_dict``."""


class Constant(Schedule):
    """Linear warm-up, then constant."""

    def factor(self, step: int, total: int) -> float:
        return min(1.0, step / max(1, self.warmup_steps(total))) if self.warmup_steps(total) else 1.0


class WarmupLinear(Schedule):
    """Linear warm-up from 0, then linear decay to 0.

    Args:
        style: ``continuous``: decays from the end of the warm-up (ViLT, transformers); ``jump``: decays from step 0, so that the rate
            jumps down at the end of the warm-up (BERT's first code); ``product``: decay times warm-up at every step (ELECTRA).
    """

    def __init__(
        self, warmup: int | float = 0, total: int | None = None, style: Literal["continuous", "jump", "product"] = "continuous"
    ) -> None:
        super().__init__(warmup, total)
        self.style = style

    def factor(self, step: int, total: int) -> float:
        warmup = self.warmup_steps(total)
        rise = step / max(1, warmup)
        if self.style == "product":
            return max(0.0, 1 - step / max(1, total)) * min(1.0, rise if warmup else 1.0)
        if step < warmup:
            return rise
        if self.style == "jump":
            return max(0.0, 1 - step / max(1, total))
        return max(0.0, (total - step) / max(1, total - warmup))


class WarmupCosine(Schedule):
    """Linear warm-up with (step + 1) / warmup, then half a cosine to ``floor`` (open_clip).

    Args:
        floor: the factor at the end.
    """

    def __init__(self, warmup: int | float = 0, total: int | None = None, floor: float = 0.0) -> None:
        super().__init__(warmup, total)
        self.floor = floor

    def factor(self, step: int, total: int) -> float:
        warmup = self.warmup_steps(total)
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


class InverseSquareRoot(Schedule):
    """Linear warm-up, then falling with the inverse square root of the step (Vaswani et al. 2017, arXiv 1706.03762 section 5.3; Paddle's
    ``noam_decay``). The rate is reached at the end of the warm-up, which must not be 0.

    Raises:
        ValueError: no warm-up.
    """

    def __init__(self, warmup: int | float = 0.1, total: int | None = None) -> None:
        super().__init__(warmup, total)
        if not warmup:
            raise ValueError("schedule.warmup=0: the inverse square root starts at the end of a warm-up; give steps, or a share of the run")

    def factor(self, step: int, total: int) -> float:
        warmup = max(1, self.warmup_steps(total))
        return min(step / warmup, math.sqrt(warmup / max(1, step)))


class Milestones(Schedule):
    """Linear warm-up, then constant, times ``drop`` at every milestone (Pixel-BERT: a tenth at epochs 25 and 35 of 40).

    Args:
        at: steps (int), or shares of the run (float below 1), ascending: ``[0.625, 0.875]`` are epochs 25 and 35 of 40.
        drop: factor of the rate from each of them on.

    Raises:
        ValueError: milestones that do not ascend, or are neither steps nor shares of the run.
    """

    def __init__(self, at: Sequence[int | float], drop: float = 0.1, warmup: int | float = 0, total: int | None = None) -> None:
        super().__init__(warmup, total)
        if any(one <= 0 or (isinstance(one, float) and one >= 1) for one in at) or sorted(at) != list(at):
            raise ValueError(f"schedule.at={list(at)}: ascending steps as ints, or ascending shares of the run as floats in (0, 1)")
        self.at, self.drop = tuple(at), drop

    def factor(self, step: int, total: int) -> float:
        warmup = self.warmup_steps(total)
        passed = sum(step >= (round(one * total) if isinstance(one, float) else one) for one in self.at)
        return float(self.drop**passed * (min(1.0, step / warmup) if warmup else 1.0))


class Stages(Schedule):
    """A schedule that starts anew at certain steps: each stage has its warm-up and its decay.

    Args:
        schedule: of a stage; its ``total`` is that of the run.
        starts: the first steps of the stages after the first.

    Raises:
        ValueError: the schedule follows the loss.
    """

    def __init__(self, schedule: Schedule, starts: Sequence[int]) -> None:
        super().__init__(schedule.warmup, schedule.total)
        if type(schedule).observe is not Schedule.observe or schedule.follows_validation:
            raise ValueError(
                f"model.phases: restart: {type(schedule).__name__} follows the loss and has no stages; choose another schedule"
            )
        self.schedule, self.starts = schedule, tuple(starts)

    def factor(self, step: int, total: int) -> float:
        begin = max((start for start in self.starts if start <= step), default=0)
        end = min((start for start in self.starts if step < start < total), default=total)
        return self.schedule.factor(step - begin, max(end - begin, 1))


class StepScheduler(LRScheduler):
    """Steps a ``Schedule`` once per optimiser step. Its state is plain numbers.

    Args:
        optimizer: the rates of its groups at construction are the base rates.
        schedule: the factor.
        total: optimiser steps of the run.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, total: int) -> None:
        self.schedule, self.total = schedule, total
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        factor = self.schedule.factor(self.last_epoch, self.total)
        return [base * factor for base in self.base_lrs]

    def observe(self, loss: torch.Tensor, finite: torch.Tensor) -> None:
        """The loss of the step that is about to end; before ``step``."""
        self.schedule.observe(self.last_epoch, self.total, loss, finite)

    def validated(self, loss: float) -> None:
        """The loss of a validation; the rate of the next step is that of what the schedule makes of it."""
        self.schedule.validated(loss)
        self.apply()

    def state_dict(self) -> dict[str, Any]:
        state = self.schedule.state_dict()
        return {"last_epoch": self.last_epoch, **({"schedule": state} if state else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the saved step; base rates, total and schedule are those of the present configuration."""
        self.last_epoch = int(state_dict["last_epoch"])
        if "schedule" in state_dict:
            self.schedule.load_state_dict(state_dict["schedule"])
        self.apply()

    def apply(self) -> None:
        """Put the factor of the present step on all groups."""
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
