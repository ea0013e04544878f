"""Samples that cannot be read: their reasons, their counts over a window, and when there are too many of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.types import Replaced

CONSECUTIVE = 100  # failures in a row of one worker that end a run
WINDOW = 10_000  # samples over which the fraction is judged
_NAMED = 3  # shards that a message names
_NUMBERS = re.compile(r"\d+")


def reason_of(error: BadSample, name: str) -> str:
    """What a failure is counted by: its message without the name of the sample, numbers and details."""
    text = str(error).split(f"{name}: ", 1)[-1]
    return _NUMBERS.sub("N", re.split(r"[:(;]", text, maxsplit=1)[0]).strip()


class BadWindow:
    """Judges the fraction of bad samples: at most ``fraction * WINDOW`` of them among ``WINDOW`` samples in a row, wherever they come.

    Args:
        fraction: that is tolerated.

    Raises:
        DataError: a fraction out of its range.
    """

    def __init__(self, fraction: float) -> None:
        if not 0 <= fraction <= 1:
            raise DataError(f"data.max_bad_fraction={fraction} must be from 0 to 1")
        self.fraction = fraction
        self.total = 0  # bad samples since the start
        self.samples = 0  # of this window
        self.reasons: Counter[str] = Counter()
        self.shards: Counter[str] = Counter()

    def add(self, samples: int, replaced: Iterable[Sequence[str]]) -> None:
        """Count samples that were asked for, and those of them that were replaced, of all ranks; judge.

        Args:
            replaced: the fields of ``types.Replaced``.

        Raises:
            DataError: too many, with the counts by reason and by shard.
        """
        if self.samples >= WINDOW:
            self.samples = 0
            self.reasons.clear()
            self.shards.clear()
        self.samples += samples
        for shard, _, reason, _ in replaced:
            self.total += 1
            self.reasons[reason] += 1
            self.shards[shard] += 1
        bad = sum(self.reasons.values())
        if bad > self.fraction * max(self.samples, WINDOW):
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.reasons.most_common())
            shards = ", ".join(f"{Path(shard).name} ({count})" for shard, count in self.shards.most_common(_NAMED))
            more = f" and {len(self.shards) - _NAMED} more" if len(self.shards) > _NAMED else ""
            raise DataError(
                f"data: {bad} of the last {self.samples} samples are bad, more than data.max_bad_fraction={self.fraction:g} of {WINDOW}: "
                f"{reasons}; in {shards}{more}; mend the shards, list the samples in quarantine.jsonl, or raise data.max_bad_fraction"
            )


def record(shard: str, key: str, name: str, error: BadSample) -> Replaced:
    """What is kept of a failure. ``name``: how messages name the sample."""
    return Replaced(shard, key, reason_of(error, name), str(error))
