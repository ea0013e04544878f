"""The position of a data module: one optimiser step at a time, saved with the run, the same on every rank."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from mmpretrain.data.bad import BadWindow
from mmpretrain.data.cursor import Cursor


class PositionedData(pl.LightningDataModule):
    """A data module whose whole state is a position. ``cursor`` is made in ``setup``; a state that was loaded before waits for it.

    Args:
        max_bad_fraction: see ``bad.BadWindow``.
    """

    def __init__(self, max_bad_fraction: float) -> None:
        super().__init__()
        self.bad = BadWindow(max_bad_fraction)
        self.cursor: Cursor | None = None
        self._saved: Mapping[str, Any] | None = None

    def advance(self) -> None:
        """One optimiser step is done: its samples are consumed."""
        if self.cursor is None:
            raise RuntimeError("ShardData.advance() before setup('fit')")
        self.cursor.advance()

    def consumed(self) -> dict[str, int]:
        """Samples of the whole run by source; {} where there is no mixture."""
        return self.cursor.consumed() if self.cursor is not None else {}

    def metrics(self) -> dict[str, float]:
        """``data/bad``: replaced samples of the run so far; ``data/<source>/samples``: those that each source of a mixture gave."""
        return {"data/bad": float(self.bad.total), **{f"data/{name}/samples": float(count) for name, count in self.consumed().items()}}

    @property
    def position(self) -> str:
        """sha256 of the state, which must be alike on every rank."""
        return hashlib.sha256(json.dumps(self.state_dict(), sort_keys=True).encode()).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """The position and what it belongs to: plain types, a few hundred bytes, the same on every rank."""
        if self.cursor is None:
            return dict(self._saved or {})
        return self.cursor.state()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            ResumeError: it belongs to other shards, another batch size or another order.
        """
        self._saved = json.loads(json.dumps(dict(state_dict)))
        self.go()

    def go(self) -> None:
        """Go to the position that was loaded, once there is a cursor; what was accepted although it differs is said."""
        if self.cursor is None or self._saved is None:
            return
        self.cursor.load(self._saved)
        for line in self.cursor.warnings:
            rank_zero_warn(f"{line.partition('; ')[0]}; accepted, since data.allow_data_change=true")
        self.cursor.warnings.clear()
