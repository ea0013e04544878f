"""The position in the data: how many samples of which epoch optimiser steps have consumed. O(1) to save and to restore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpretrain.data.errors import ResumeError
from mmpretrain.data.plan import Plan

VERSION = 1


class Cursor:
    """Counts optimiser steps, not fetched batches: what was prefetched when a run died was not consumed.

    Args:
        plan: of the epoch.
        identity: what must be equal for a position to mean the same samples.
        allow_change: accept other shards, and another batch size where the position is a multiple of it.
    """

    def __init__(self, plan: Plan, identity: Mapping[str, Any], allow_change: bool = False) -> None:
        self.plan, self.identity, self.allow_change = plan, dict(identity), allow_change
        self.epoch, self.step = 0, 0

    def advance(self) -> None:
        """One step further; the last of an epoch leads to the first of the next."""
        self.step += 1
        if self.step >= self.plan.steps:
            self.epoch, self.step = self.epoch + 1, 0

    def state(self) -> dict[str, Any]:
        """Plain types."""
        return {"version": VERSION, "epoch": self.epoch, "samples": self.step * self.plan.batch_size, **self.identity}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position.

        Raises:
            ResumeError: naming what differs and the remedy.
        """
        if not state:
            return
        missing = [name for name in ("version", "epoch", "samples", *self.identity) if name not in state]
        if missing or state["version"] != VERSION:
            reason = f"lacks {', '.join(missing)}" if missing else f"has version {state['version']}, this is {VERSION}"
            raise ResumeError(f"data: the saved position {reason}; it was written by another version of mmpretrain and cannot be continued")
        changed = [name for name, value in self.identity.items() if state[name] != value]
        tolerated = {"fingerprint", "batch_size"} if self.allow_change else set()
        for name in changed:
            if name not in tolerated:
                raise ResumeError(_explain(name, state[name], self.identity[name]))
        samples = int(state["samples"])
        if samples % self.plan.batch_size:
            raise ResumeError(
                f"data: the run consumed {samples} samples of this epoch, which is no multiple of data.batch_size={self.plan.batch_size}; "
                f"continue with data.batch_size={state['batch_size']}"
            )
        self.epoch, self.step = int(state["epoch"]), samples // self.plan.batch_size
        if self.step >= self.plan.steps:
            self.epoch, self.step = self.epoch + 1, 0


def _explain(name: str, saved: Any, now: Any) -> str:
    if name == "fingerprint":
        return (
            f"data: the training shards are not those of the checkpoint (fingerprint {str(saved)[:12]} then, {str(now)[:12]} now); "
            "restore them, or set data.allow_data_change=true"
        )
    if name == "batch_size":
        return f"data: the checkpoint was trained with data.batch_size={saved}, not {now}; set it back, or set data.allow_data_change=true"
    return f"data: the checkpoint was trained with data.{name}={saved}, not {now}: the order would be another one; set it back"
