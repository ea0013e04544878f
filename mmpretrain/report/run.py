"""Typed, tolerant reading of a run directory (written by ``train/run_dir.py``), without torch.

``runs/<recipe>-<date>-<time>/`` holds ``config.yaml``, ``environment.json``, ``metrics.jsonl``, ``result.json``, ``panels/<step>/*.json``.
Every part but one of config, environment and metrics may be missing: a run may be young, killed, or without validation.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmpretrain.report import panels_schema

CONFIG, ENVIRONMENT, METRICS, RESULT, PANELS = "config.yaml", "environment.json", "metrics.jsonl", "result.json", "panels"
_CLOCK = ("step", "epoch", "time")


class NoRunError(ValueError):
    """The folder is not a run directory; the message is one line for the user."""


class Series(NamedTuple):
    """One metric over the run; the three have equal length, sorted by step."""

    steps: tuple[int, ...]
    times: tuple[float, ...]  # unix seconds; NaN where the record has none
    values: tuple[float, ...]  # may hold NaN or infinity, as they happened


class Row(NamedTuple):
    """One line of the final table."""

    name: str
    value: float | str
    chance: float | None = None
    stamp: str | None = None  # data fingerprint, protocol, precision, count


class Result(NamedTuple):
    """The final table and whatever else the run noted at its end (paths and the like)."""

    rows: tuple[Row, ...]
    notes: Mapping[str, str]


class StoredPanel(NamedTuple):
    """A panel and the folder that its picture paths start from."""

    name: str
    folder: Path
    panel: panels_schema.Panel


class Run:
    """One run directory. Use ``Run.open``.

    Attributes:
        path: the directory.
        warnings: one line for each part that could not be read; they are shown on the page.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Check that ``path`` is a run directory.

        Raises:
            NoRunError: it is not; one line with the remedy.
        """
        path = Path(path)
        if not path.is_dir():
            raise NoRunError(f"{path}: no such folder; give the folder of a run, such as runs/vilt-20260101-120000")
        if not any((path / name).is_file() for name in (CONFIG, ENVIRONMENT, METRICS)):
            raise NoRunError(
                f"{path}: not a run (no {METRICS}, {CONFIG} or {ENVIRONMENT} in it); give the folder that `mmpretrain fit` printed"
            )
        return cls(path)

    @property
    def name(self) -> str:
        """The recipe: the folder's name without date and time."""
        folder = self.path.resolve().name
        return re.sub(r"-\d{8}-\d{6}(-\d+)?$", "", folder) or folder

    @property
    def config_text(self) -> str | None:
        """The resolved configuration as it was saved."""
        return self._text(CONFIG)

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, machine, command; empty where it was not written."""
        value = self._json(ENVIRONMENT)
        return value if isinstance(value, dict) else {}

    def metrics(self) -> dict[str, Series]:
        """Every metric by name. A truncated last line (a killed run) is left out; steps repeated after a resume keep the later value."""
        text = self._text(METRICS) or ""
        lines = text.splitlines()
        table: dict[str, dict[int, tuple[float, float]]] = {}
        for number, line in enumerate(lines, 1):
            record = _record(line)
            if record is None:
                if line.strip() and number < len(lines):
                    self._warn(f"{METRICS}: line {number} is not a JSON object with a step, left out")
                continue
            moment = record.get("time", math.nan)
            for name, value in record.items():
                if name not in _CLOCK and isinstance(value, (int, float)) and not isinstance(value, bool):
                    table.setdefault(name, {})[record["step"]] = (float(moment), float(value))
        return {name: _series(points) for name, points in table.items()}

    def result(self) -> Result | None:
        """The final table, or None while the run has none."""
        value = self._json(RESULT)
        if value is None:
            return None
        rows = value.get("rows", value.get("table")) if isinstance(value, dict) else value
        if not isinstance(rows, list):
            self._warn(f"{RESULT}: no list of rows in it")
            rows = []
        notes = {str(k): str(v) for k, v in value.items() if isinstance(v, (str, int, float))} if isinstance(value, dict) else {}
        good = [row for row in rows if isinstance(row, dict) and "name" in row and "value" in row]
        return Result(tuple(_row(row) for row in good), notes)

    def panels(self) -> list[StoredPanel]:
        """Every readable panel, by step and name."""
        found = []
        for file in sorted((self.path / PANELS).glob("*/*.json")):
            try:
                panel = panels_schema.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                self._warn(f"{file.relative_to(self.path)}: {error}")
                continue
            found.append(StoredPanel(file.stem, file.parent, panel))
        return sorted(found, key=lambda stored: (stored.panel.step, stored.name))

    def _warn(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings.append(line)

    def _text(self, name: str) -> str | None:
        file = self.path / name
        if not file.is_file():
            return None
        try:
            return file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            self._warn(f"{name}: {error.strerror}")
            return None

    def _json(self, name: str) -> Any:
        text = self._text(name)
        try:
            return None if text is None else json.loads(text)
        except ValueError as error:
            self._warn(f"{name}: not readable as JSON ({error})")
            return None


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    good = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if good and isinstance(record.get("time", 0.0), (int, float)) else None


def _series(points: dict[int, tuple[float, float]]) -> Series:
    steps = sorted(points)
    return Series(tuple(steps), tuple(points[s][0] for s in steps), tuple(points[s][1] for s in steps))


def _row(row: Mapping[str, Any]) -> Row:
    value, chance, stamp = row["value"], row.get("chance"), row.get("stamp")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(stamp, Mapping):
        stamp = _sentence(stamp)
    return Row(
        name=str(row["name"]),
        value=float(value) if number else "–" if value is None else str(value),
        chance=float(chance) if isinstance(chance, (int, float)) else None,
        stamp=None if stamp is None else str(stamp),
    )


def _sentence(stamp: Mapping[str, Any]) -> str:
    """``evaluate.result.Stamp`` as one line."""
    units = {"count": "{} counted", "weights": "{} weights"}
    return " · ".join(units.get(key, "{}").format(item) for key, item in stamp.items())
