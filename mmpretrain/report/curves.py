"""Which metrics share a chart, in which section, and how few points still show the same curve."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmpretrain.report.run import Series

SECTIONS = ("Loss", "Objectives", "Validation", "Speed", "Data", "Other")
_LOSS = {"loss": "loss", "lr": "learning rate", "grad_norm": "gradient norm"}
POINT_LIMIT = 1200  # per line; more cannot be seen and would make the page heavy
_FIRST = {"speed": "Speed", "memory": "Speed", "data": "Data", "val": "Validation", "test": "Validation"}


class Line(NamedTuple):
    name: str
    series: Series


class Chart(NamedTuple):
    section: str
    title: str
    unit: str  # "", "%"
    lines: tuple[Line, ...]


def place(name: str) -> tuple[str, str, str]:
    """(section, chart, line) of a metric name.

    >>> place("train/mlm/loss")
    ('Objectives', 'mlm loss', 'train')
    >>> place("val/retrieval/coco/i2t_R@5")
    ('Validation', 'retrieval coco: image to text', 'R@5')
    """
    first, _, rest = name.partition("/")
    recall = re.fullmatch(r"(.*?)/?(i2t|t2i)_(R@\d+)", rest)
    if recall:
        direction = "image to text" if recall[2] == "i2t" else "text to image"
        return "Validation", f"{recall[1].replace('/', ' ') or first}: {direction}", recall[3]
    if first in ("train", "val") and rest:
        if rest in _LOSS or rest.startswith(("lr/", "grad_norm/")):
            return "Loss", _LOSS.get(rest, _words(rest)), first
        kinds = re.fullmatch(r"([^/]+)/(accuracy|distance)_(.+)", rest)
        if kinds:
            return "Objectives", f"{kinds[1]} {kinds[2]} by kind, {first}", kinds[3].replace("_", " ")
        section = "Objectives" if rest.count("/") == 1 or first == "train" else "Validation"
        return section, _words(rest), first
    title = _words(rest or name)
    title = {"rss gib": "memory, GiB", "wait share": "share of time waiting"}.get(title, title.replace(" per s", "/s"))
    return _FIRST.get(first, "Other"), title, ""


def _words(name: str) -> str:
    return name.replace("/", " ").replace("_", " ")


def charts(metrics: Mapping[str, Series]) -> list[Chart]:
    """All charts in the order of the page; metrics that never had a finite value are left out."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for name, series in metrics.items():
        if any(math.isfinite(value) for value in series.values):
            section, title, line = place(name)
            groups.setdefault((section, title), []).append(Line(line, thin(series)))
    made: list[Chart] = []
    for (section, title), lines in groups.items():
        lines.sort(key=lambda line: (line.name != "train", _natural(line.name)))
        made.append(Chart(section, title, _unit(title, lines), tuple(lines)))
    return sorted(made, key=lambda chart: (SECTIONS.index(chart.section), chart.title != "loss", _natural(chart.title)))


def thin(series: Series, limit: int = POINT_LIMIT) -> Series:
    """At most about ``limit`` points: the lowest and the highest of each bucket, so that spikes stay visible, and both ends."""
    n = len(series.steps)
    if n <= limit:
        return series
    buckets, keep = limit // 2 - 1, {0, n - 1}
    for b in range(buckets):
        inside = [i for i in range(b * n // buckets, (b + 1) * n // buckets) if math.isfinite(series.values[i])]
        if inside:
            keep.add(min(inside, key=series.values.__getitem__))
            keep.add(max(inside, key=series.values.__getitem__))
    kept = sorted(keep)
    return Series(*(tuple(column[i] for i in kept) for column in series))


def payload(made: list[Chart]) -> list[dict[str, Any]]:
    """The charts as JSON for the page's script; minutes count from the first record, numbers have five digits."""
    starts = [t for chart in made for line in chart.lines for t in line.series.times if math.isfinite(t)]
    start = min(starts, default=0.0)
    return [
        {
            "title": chart.title,
            "unit": chart.unit,
            "lines": [
                {
                    "name": line.name,
                    "x": list(line.series.steps),
                    "t": [round((t - start) / 60, 3) if math.isfinite(t) else None for t in line.series.times],
                    "y": [float(f"{v:.5g}") if math.isfinite(v) else None for v in line.series.values],
                }
                for line in chart.lines
            ],
        }
        for chart in made
    ]


def _unit(title: str, lines: list[Line]) -> str:
    share = re.search(r"accuracy|share|R@|image to text|text to image|top\d", title)
    inside = all(0 <= v <= 1 for line in lines for v in line.series.values if math.isfinite(v))
    return "%" if share and inside else ""


def _natural(text: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", text) if part]
