"""Samples that cannot be read: their reasons, their counts over a window, and when there are too many of them."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmpretrain.data.errors import BadSample, DataError, named
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

    The window slides by what is counted at a time; more than ``WINDOW`` samples counted at once are judged by their own number.

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
        self.samples = self._bad = 0  # of the window
        self._counted: deque[tuple[int, list[tuple[str, str]]]] = deque()  # samples, (shard, reason) of the bad ones among them
        self._verdict: str | None = None

    def count(self, samples: int, replaced: Iterable[Sequence[str]]) -> None:
        """Count samples that were asked for, and those of them that were replaced, of all ranks.

        Args:
            replaced: the fields of ``types.Replaced``.
        """
        bad = [(shard, reason) for shard, _, reason, _ in replaced]
        self._counted.append((samples, bad))
        self.samples, self._bad, self.total = self.samples + samples, self._bad + len(bad), self.total + len(bad)
        while self.samples > WINDOW and len(self._counted) > 1:
            samples, gone = self._counted.popleft()
            self.samples, self._bad = self.samples - samples, self._bad - len(gone)
        if self._verdict is None and self._bad > self.fraction * max(self.samples, WINDOW):
            self._verdict = self._told()

    def judge(self) -> None:
        """Raises DataError where there were too many at any time, with the counts by reason and by shard."""
        if self._verdict is not None:
            raise DataError(self._verdict)

    def add(self, samples: int, replaced: Iterable[Sequence[str]]) -> None:
        """Count and judge."""
        self.count(samples, replaced)
        self.judge()

    def _told(self) -> str:
        bad = [one for _, some in self._counted for one in some]
        counts, places = Counter(reason for _, reason in bad), Counter(shard for shard, _ in bad)
        reasons = ", ".join(f"{count} x {reason}" for reason, count in counts.most_common())
        shards = ", ".join(f"{Path(shard).name} ({count})" for shard, count in places.most_common(_NAMED))
        more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
        return (
            f"data: {len(bad)} of the last {self.samples} samples are bad, more than data.max_bad_fraction={self.fraction:g} of {WINDOW}: "
            f"{reasons}; in {shards}{more}; mend the shards, list the samples in quarantine.jsonl, or raise data.max_bad_fraction"
        )


def record(error: BadSample, shard: str, key: str) -> Replaced:
    """What is kept of a failure: under the sample that the error is of, or, where it says none, under ``shard`` and ``key``."""
    if error.shard:
        shard, key = error.shard, error.key
    return Replaced(shard, key, reason_of(error, named(shard, key)), str(error))
