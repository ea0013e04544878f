"""Phases: values that change during a run (curricula, stages, temperatures), as a table in the configuration.

A value is set for as long as a row lasts, or moves along a ramp that begins with the row:

    phases:
    - set:
        model.temperature: {from: 1.0, to: 0.0625, over: 150000, shape: cosine}
        elbo.kl_weight: {from: 0.0, to: 6.6, over: 5000, shape: cosine}

What a value is depends on the optimiser step alone, so that a resumed run sees the values of an unbroken one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

SHAPES = ("cosine", "linear", "exponential")


class Ramp(NamedTuple):
    """A value on its way from one number to another, where it stays.

    ``cosine``: half a cosine, flat at both ends: end + (start - end) (1 + cos(pi t)) / 2 with t = step / over. ``linear``: start + (end -
    start) t. ``exponential``: start (end / start)^t.
    """

    start: float
    end: float
    over: int  # optimiser steps
    shape: str = "cosine"

    def at(self, step: int) -> float:
        """The value during the ``step``-th optimiser step of the row, counted from 0."""
        t = min(1.0, step / self.over)
        if t >= 1:
            return self.end
        if self.shape == "cosine":
            return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * t))
        if self.shape == "linear":
            return self.start + (self.end - self.start) * t
        return float(self.start * (self.end / self.start) ** t)


class Phase(NamedTuple):
    """One row of the table."""

    until: int | None  # the first optimiser step that no longer belongs to it; None: to the end
    set: Mapping[str, float | int | bool | str | Ramp]  # "<objective>.<attribute>", "model.<attribute>", "adversarial.<attribute>"
    since: int = 0  # its first optimiser step


class Phases:
    """The table of a run.

    Args:
        rows: as in YAML.

    Raises:
        ValueError: ``until`` does not rise, an open row is not the last, or a ramp is none.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        limits = [row.get("until") for row in rows]
        if any(limit is None for limit in limits[:-1]) or any(b is not None and b <= a for a, b in pairwise(limits)):
            raise ValueError(f"model.phases: until must rise from row to row and only the last may lack it, not {limits}")
        starts = [0, *limits]
        self.rows = tuple(
            Phase(row.get("until"), {path: _value(path, value) for path, value in row.get("set", {}).items()}, start)
            for row, start in zip(rows, starts, strict=False)  # the end of the last row is no start
        )
        self.ramped: dict[str, float] = {}  # the values of the ramps at the step that was applied last

    def active(self, step: int) -> Phase | None:
        """The row that optimiser step ``step`` belongs to."""
        return next((phase for phase in self.rows if phase.until is None or step < phase.until), None)

    def apply(self, step: int, owners: Mapping[str, Any]) -> None:
        """Set the values of optimiser step ``step``.

        Args:
            owners: what has attributes, by name: the model, the objectives, a method; None: not in use.

        Raises:
            ValueError: a target does not exist or holds another kind of value.
        """
        phase, self.ramped = self.active(step), {}
        for path, value in phase.set.items() if phase is not None else ():
            if isinstance(value, Ramp):
                value = self.ramped[path] = value.at(step - phase.since)
            owner_name, _, attribute = path.partition(".")
            owner = owners.get(owner_name)
            present = getattr(owner, attribute, None) if owner is not None and attribute else None
            numbers = isinstance(present, int | float) and isinstance(value, int | float)
            if present is None or not (numbers or type(present) is type(value)):
                known = ", ".join(name for name, one in owners.items() if one is not None)
                raise ValueError(f"model.phases: {path!r} is not a number, switch or word like {value!r} of one of: {known}")
            setattr(owner, attribute, value)


def _value(path: str, value: Any) -> Any:
    """A value of the table: itself, or the ramp that a mapping describes.

    Raises:
        ValueError: a mapping that describes none.
    """
    if not isinstance(value, Mapping):
        return value
    form = f"model.phases: {path!r}: a ramp is {{from: NUMBER, to: NUMBER, over: STEPS, shape: {' | '.join(SHAPES)}}}"
    if missing := [key for key in ("from", "to", "over") if key not in value]:
        raise ValueError(f"{form}; it lacks {missing[0]!r}")
    if unknown := [key for key in value if key not in ("from", "to", "over", "shape")]:
        raise ValueError(f"{form}; there is no {unknown[0]!r}")
    start, end, over, shape = value["from"], value["to"], value["over"], value.get("shape", "cosine")
    if any(isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x) for x in (start, end)):
        raise ValueError(f"{form}; from={start!r} and to={end!r} are not both numbers")
    if isinstance(over, bool) or not isinstance(over, int) or over < 1:
        raise ValueError(f"{form}; over={over!r} is not a whole number of optimiser steps, at least 1")
    if shape not in SHAPES:
        raise ValueError(f"{form}; there is no shape {shape!r}")
    if shape == "exponential" and not start * end > 0:
        raise ValueError(f"{form}; an exponential ramp goes between numbers of one sign, not from {start} to {end}")
    return Ramp(float(start), float(end), over, shape)
