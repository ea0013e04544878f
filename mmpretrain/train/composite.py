"""Several optimisers as one: one step, one state, one list of groups, so that a step of training counts once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Composite(torch.optim.Optimizer):
    """Steps each of ``parts`` on the parameters it was built with.

    Groups and states are those of the parts themselves, so that schedules, checkpoints and sharding see one plain optimiser.

    Args:
        parts: optimisers over different parameters. They are stepped through this one alone.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Give the parts the state and their groups of this one."""
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.__setstate__({"state": self.state, "param_groups": self.param_groups[start:end]})
            start = end

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What loading ends with."""
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each part, in order; what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            if hasattr(self, "found_inf"):  # the guard's word to fused kernels
                part.found_inf = self.found_inf  # type: ignore[attr-defined]
            part.step()
        return loss
