"""Counts of values that add up exactly over shards: numbers rounded to three digits, so that a histogram stays small whatever the data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

Counts = dict[str, int]  # value as text (JSON has no other keys) -> how often


def rounded(value: float) -> float:
    """Three significant digits; whole numbers below 1000 as they are."""
    if value == 0 or not math.isfinite(value):
        return 0.0
    digits = 2 - math.floor(math.log10(abs(value)))
    return float(round(value, digits)) if digits > 0 else float(round(value / 10**-digits) * 10**-digits)


def add(counts: Counts, value: float, times: int = 1) -> None:
    """Count a value."""
    key = f"{rounded(value):g}"
    counts[key] = counts.get(key, 0) + times


def merged(many: Iterable[Mapping[str, int]]) -> Counts:
    """The sum of several histograms."""
    found: Counts = {}
    for one in many:
        for key, count in one.items():
            found[key] = found.get(key, 0) + count
    return found


def ordered(counts: Mapping[str, int]) -> list[tuple[float, int]]:
    """(value, count) by value."""
    return sorted((float(key), count) for key, count in counts.items())


def total(counts: Mapping[str, int]) -> int:
    """How many values were counted."""
    return sum(counts.values())


def quantile(counts: Mapping[str, int], share: float) -> float:
    """The smallest value that at least ``share`` of all values do not exceed; 0 without any."""
    wanted, seen, value = share * total(counts), 0, 0.0
    for value, count in ordered(counts):
        seen += count
        if seen >= wanted:
            return value
    return value


def mean(counts: Mapping[str, int]) -> float:
    """The mean of the rounded values; 0 without any."""
    return sum(value * count for value, count in ordered(counts)) / max(total(counts), 1)


def bars(counts: Mapping[str, int], most: int = 40) -> list[tuple[float, float, int]]:
    """At most ``most`` (from, to, count) that cover the values: of one width, or of one ratio where they span more than two decades.

    A bar holds from <= value < to; the last one also its end. Whole numbers that need no more than ``most`` bars get one each.
    """
    rows = ordered(counts)
    if not rows:
        return []
    low, high = rows[0][0], rows[-1][0]
    if all(value == int(value) for value, _ in rows) and high - low < most:
        found = dict(rows)
        return [(low + n, low + n + 1, found.get(low + n, 0)) for n in range(int(high - low) + 1)]
    if low > 0 and high / low > 100:
        edges = [low * (high / low) ** (n / most) for n in range(most + 1)]
    else:
        edges = [low + (high - low) * n / most for n in range(most + 1)]
    edges[-1] = high
    filled, at = [0] * most, 0
    for value, count in rows:
        while at < most - 1 and value >= edges[at + 1]:
            at += 1
        filled[at] += count
    return list(zip(edges[:-1], edges[1:], filled, strict=True))
