"""Which metrics share a chart, in which section, and how few points still show the same curve."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmpretrain.report.run import Series

SECTIONS = ("Loss", "Objectives", "Validation", "Speed", "Data", "Other")
_MEASUREMENTS = ("retrieval", "matching", "mlm", "mim", "zeroshot", "reconstruction", "likelihood")
_LOSS = {"loss": "loss", "lr": "learning rate", "grad_norm": "gradient norm"}
_SIGHTS = {"accuracy": "with image", "accuracy_other_image": "with another image", "accuracy_without_image": "without image"}
_TOLD = {"accuracy": "with text", "accuracy_other_text": "with another text", "accuracy_without_text": "without text"}
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
    if first in ("train", "val", "test") and rest:
        return _objective(first, rest) or _measured(first, rest)
    title = _words(rest or name)
    title = {"rss gib": "memory, GiB", "wait share": "share of time waiting"}.get(title, title.replace(" per s", "/s"))
    return _FIRST.get(first, "Other"), title, ""


def _objective(split: str, rest: str) -> tuple[str, str, str] | None:
    """Losses, rates and what objectives say of themselves: ``mlm/loss``, ``itm/accuracy_edit``, ``<validation set>/mlm/loss``."""
    parts = rest.split("/")
    if rest == "loss" or parts[0] in ("lr", "grad_norm"):
        return "Loss", _LOSS.get(rest, _words(rest)), split
    if len(parts) == 3 and parts[0] not in _MEASUREMENTS:
        split, parts = f"{split} {parts[0]}", parts[1:]
    if len(parts) != 2:
        return None if len(parts) > 2 or split != "train" else ("Other", _words(rest), split)
    kind = re.fullmatch(r"(accuracy|distance)_(.+)", parts[1])
    if kind:
        return "Objectives", f"{parts[0]} {kind[1]} by kind, {split}", _words(kind[2])
    return "Objectives", _words("/".join(parts)), split


def _measured(split: str, rest: str) -> tuple[str, str, str]:
    """What ``evaluate`` measures: ``retrieval/<set>/i2t_R@5``, ``matching/<set>/edits/colour/accuracy``, ``mlm/<set>/accuracy``,
    ``likelihood/<set>/code/loss_other_text``."""
    *path, leaf = rest.split("/")
    likelihood = path[:1] == ["likelihood"]  # of an objective
    where = " ".join(path[: 3 if likelihood else 2]) + (", test" if split == "test" else "")
    direction = {"i2t": "image to text", "t2i": "text to image"}.get(leaf.partition("_")[0])
    if direction is not None:
        of = leaf.partition("_")[2]
        return ("Validation", f"{where}: {direction}", of) if of.startswith("R@") else ("Validation", f"{where}: {_words(of)}", direction)
    if path and path[0] == "matching" and len(path) == 3:
        return "Validation", f"{where}: {_words(leaf)}", path[2]
    if path and path[0] == "matching" and len(path) > 3:
        return "Validation", f"{where}: {_words(leaf)} by {path[2].removesuffix('s')}", " ".join(path[3:])
    if likelihood:
        return "Validation", f"{where}: {leaf.partition('_')[0]}", _words(leaf)
    if path and path[0] == "reconstruction":
        return "Validation", f"{where}: {_words(leaf)}", split
    if path and path[0] == "mim" and leaf in _TOLD:
        return "Validation", f"{where}: accuracy", _TOLD[leaf]
    if leaf in _SIGHTS:
        return "Validation", f"{where}: accuracy", _SIGHTS[leaf]
    return "Validation", where or _words(rest), _words(leaf)


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
    first = {"loss": 0, "retrieval": 0}
    return sorted(made, key=lambda c: (SECTIONS.index(c.section), first.get(c.title.split()[0], 1), _natural(c.title)))


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
    columns: list[Any] = [tuple(column[i] for i in kept) for column in series]
    return Series(*columns)


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
    share = re.search(r"accuracy|share|usage|preferred|image to text|text to image|top\d", title)
    inside = all(0 <= v <= 1 for line in lines for v in line.series.values if math.isfinite(v))
    return "%" if share and inside else ""


def _natural(text: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", text) if part]
