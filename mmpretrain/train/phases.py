"""Phases: values that change during a run (curricula, stages, temperatures), as a table in the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple


class Phase(NamedTuple):
    """One row of the table."""

    until: int | None  # the first optimiser step that no longer belongs to it; None: to the end
    set: Mapping[str, float | int | bool | str]  # "<objective>.<attribute>", "model.<attribute>", "adversarial.<attribute>" -> value


def as_phases(rows: Sequence[Phase | Mapping[str, Any]]) -> tuple[Phase, ...]:
    """Rows of a YAML table as phases.

    Raises:
        ValueError: ``until`` does not rise, or an open row is not the last.
    """
    phases = tuple(row if isinstance(row, Phase) else Phase(row.get("until"), dict(row.get("set", {}))) for row in rows)
    limits = [phase.until for phase in phases]
    if any(limit is None for limit in limits[:-1]) or any(b is not None and b <= a for a, b in pairwise(limits)):
        raise ValueError(f"model.phases: until must rise from row to row and only the last may lack it, not {limits}")
    return phases


def active(phases: Sequence[Phase], step: int) -> Phase | None:
    """The phase that optimiser step ``step`` belongs to."""
    return next((phase for phase in phases if phase.until is None or step < phase.until), None)


def apply(phase: Phase, owners: Mapping[str, Any]) -> None:
    """Set the values of a phase.

    Args:
        owners: what has attributes, by name: the model, the objectives, a method; None: not in use.

    Raises:
        ValueError: a target does not exist or holds another kind of value.
    """
    for path, value in phase.set.items():
        owner_name, _, attribute = path.partition(".")
        owner = owners.get(owner_name)
        present = getattr(owner, attribute, None) if owner is not None and attribute else None
        numbers = isinstance(present, int | float) and isinstance(value, int | float)
        if present is None or not (numbers or type(present) is type(value)):
            known = ", ".join(name for name, one in owners.items() if one is not None)
            raise ValueError(f"model.phases: {path!r} is not a number, switch or word like {value!r} of one of: {known}")
        setattr(owner, attribute, value)
