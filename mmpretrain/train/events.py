"""What happened to a run: ``events.jsonl`` in its folder, one JSON object a line, and counts that ``Metrics`` logs as ``events/...``.

Events: ``nonfinite`` and ``spike`` (with the keys of the samples), ``rollback``, ``checkpoint_failed``, ``logger_failed``,
``worker_failed``, ``stalled``, ``signal``, ``bad_in_validation`` (how many samples). The file is a history: nothing is ever taken out
of it, not by a resumption either.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

FILE = "events.jsonl"
_KEPT = 10_000  # lines in memory while the disk refuses


class Journal:
    """Lines appended to a file. A disk that refuses stops nobody: lines wait in memory, the oldest are dropped beyond ten thousand,
    one warning is given, and what was written only in part is cut off before the next try. Of a line that an earlier process left in part
    the next one does not become a part.

    Args:
        path: of the file; what it holds is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failures = 0
        self._waiting: list[bytes] = []
        self._good: int | None = None  # where the last try failed: the size of the file before it

    def append(self, entry: Mapping[str, Any]) -> bool:
        """Write one line, and those that wait; False when the disk refused."""
        self._waiting = [*self._waiting[-_KEPT + 1 :], json.dumps(dict(entry)).encode() + b"\n"]
        try:
            with self.path.open("a+b") as file:
                if self._good is not None and file.tell() > self._good:
                    file.truncate(self._good)
                    file.seek(self._good)
                self._good = file.tell()
                file.seek(max(0, self._good - 1))
                if file.read(1) not in (b"", b"\n"):
                    file.write(b"\n")
                file.write(b"".join(self._waiting))
                file.flush()
        except OSError as error:
            self.failures += 1
            if self.failures == 1:
                rank_zero_warn(f"{self.path}: {error.strerror}; lines wait in memory, training goes on")
            return False
        self._waiting, self._good = [], None
        return True


def counts(trainer: pl.Trainer) -> Counter[str]:
    """Events of this process by name."""
    return trainer.__dict__.setdefault("mmpretrain_events", Counter())


def note(trainer: pl.Trainer, event: str, **facts: Any) -> None:
    """Count an event and, on rank 0, write it down. ``facts`` are plain; numbers that are not finite become text."""
    counts(trainer)[event] += 1
    if not trainer.is_global_zero:
        return
    journal = trainer.__dict__.get("mmpretrain_journal")
    if journal is None:
        folder = Path(trainer.default_root_dir)
        if not folder.is_dir():
            return
        journal = trainer.__dict__["mmpretrain_journal"] = Journal(folder / FILE)
    plain = {name: str(x) if isinstance(x, float) and not math.isfinite(x) else x for name, x in facts.items()}
    journal.append({"event": event, "step": trainer.global_step, "time": time.time(), **plain})
