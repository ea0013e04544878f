"""Intervals of paired differences."""

from __future__ import annotations

import numpy as np


def interval(difference_N: np.ndarray, resamples: int = 10_000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of paired differences.

    Args:
        difference_N: one value for each unit that is drawn: a query, or the mean over queries that go together.
        resamples: how often N units are drawn with replacement.
        level: coverage.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    size = len(difference_N)
    means = [difference_N[rng.integers(size, size=size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
