"""Phases: values that change during a run (curricula, stages, temperatures), as a table in the configuration.

A value is set from the first step of its row on, until a later row sets another one, or moves along a ramp for as long as its row lasts:

    phases:
    - set:
        model.temperature: {from: 1.0, to: 0.0625, over: 150000, shape: cosine}
        elbo.kl_weight: {from: 0.0, to: 6.6, over: 5000, shape: cosine}

A row with ``restart: true`` begins a stage: the optimiser forgets its moments, and the schedule starts anew and spans the steps to the
next such row, or to the end. Weights and their average go on.

What a value is depends on the optimiser step alone, so that a resumed run sees the values of an unbroken one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

SHAPES = ("cosine", "linear", "exponential")
KEYS = ("until", "set", "restart")


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
    restart: bool = False  # of optimiser and schedule


class Phases:
    """The table of a run.

    Args:
        rows: as in YAML.

    Raises:
        ValueError: a row has an unknown key, ``until`` does not rise, an open row is not the last, or a ramp is none.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        for number, row in enumerate(rows):
            if unknown := [key for key in row if key not in KEYS]:
                raise ValueError(f"model.phases: row {number} has no key {unknown[0]!r}; keys are {', '.join(KEYS)}")
            limit = row.get("until", 1)
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
                raise ValueError(f"model.phases: row {number}: until={limit!r} is not a whole number of optimiser steps, at least 1")
            if not isinstance(row.get("restart", False), bool) or (row.get("restart") and not number):
                raise ValueError(f"model.phases: row {number}: restart is true or false, and false in the first row, which begins the run")
        limits = [row.get("until") for row in rows]
        if any(limit is None for limit in limits[:-1]) or any(b is not None and b <= a for a, b in pairwise(limits)):
            raise ValueError(f"model.phases: until must rise from row to row and only the last may lack it, not {limits}")
        starts = [0, *limits][: len(rows)]  # the end of the last row is no start
        self.rows = tuple(
            Phase(row.get("until"), _values(row.get("set") or {}), start, row.get("restart", False))
            for row, start in zip(rows, starts, strict=True)
        )
        self.ramped: dict[str, float] = {}  # the values of the ramps at the step that was applied last

    def restarts(self) -> tuple[int, ...]:
        """The optimiser steps at which optimiser and schedule start anew."""
        return tuple(phase.since for phase in self.rows if phase.restart)

    def check(self, owners: Mapping[str, Any]) -> None:
        """Before the run: whether every row can be applied.

        Raises:
            ValueError: a target does not exist or holds another kind of value.
        """
        for phase in self.rows:
            for path, value in phase.set.items():
                _target(path, value.end if isinstance(value, Ramp) else value, owners)

    def apply(self, step: int, owners: Mapping[str, Any]) -> None:
        """Set the values of optimiser step ``step``.

        Args:
            owners: what has attributes, by name: the model, the objectives, a method; None: not in use.

        Raises:
            ValueError: a target does not exist or holds another kind of value.
        """
        values, self.ramped = dict[str, Any](), {}
        for phase in (phase for phase in self.rows if phase.since <= step):  # those that have ended too: a resumed run did not see them
            last = step if phase.until is None else min(step, phase.until - 1)
            for path, value in phase.set.items():
                values[path] = value.at(last - phase.since) if isinstance(value, Ramp) else value
                if isinstance(value, Ramp) and last == step:
                    self.ramped[path] = values[path]
        for path, value in values.items():
            setattr(*_target(path, value, owners), value)


def _target(path: str, value: Any, owners: Mapping[str, Any]) -> tuple[Any, str]:
    """The owner of a value, and the name of its attribute.

    Raises:
        ValueError: there is none, or it holds another kind of value.
    """
    owner_name, _, attribute = path.partition(".")
    owner = owners.get(owner_name)
    if owner is None:
        known = ", ".join(name for name, one in owners.items() if one is not None)
        raise ValueError(f"model.phases: {path!r} is not a number, switch or word of one of: {known}")
    present = getattr(owner, attribute, None) if attribute else None
    numbers = isinstance(present, int | float) and isinstance(value, int | float)
    if present is None or not (numbers or type(present) is type(value)):
        known = ", ".join(f"{name} ({one!r})" for name, one in vars(owner).items() if _settable(name, one))
        raise ValueError(f"model.phases: {path!r} is not a number, switch or word like {value!r}; {owner_name} has {known or 'none'}")
    return owner, attribute


def _settable(name: str, value: Any) -> bool:
    """Whether an attribute is one that a row may set, for messages."""
    return isinstance(value, int | float | str) and not name.startswith("_") and name not in ("training", "name")


def _values(row: Any) -> dict[str, Any]:
    """What a row sets.

    Raises:
        ValueError: not a mapping.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"model.phases: set is a mapping of names to values, not {row!r}")
    return {path: _value(path, value) for path, value in row.items()}


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
