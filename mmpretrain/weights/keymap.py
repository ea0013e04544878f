"""Declarative two-way maps between our parameter names and another library's.

A map is a list of rules. Each names our tensors, theirs, and how one side becomes the other; the same rule is read in both directions.
Nothing is dropped silently: what no rule claims is an error in our state, and reported in theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

_PLACE = re.compile(r"\\\{([ijp])\\\}")
_PATTERNS = {"i": r"\d+", "j": r"\d+", "p": r"weight|bias|running_mean|running_var|num_batches_tracked"}


class KeyMapError(ValueError):
    """A state dict does not have the tensors that a map expects, or has others."""


class Op(Protocol):
    """How the tensors of one rule change sides. Both directions are exact."""

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]: ...

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]: ...


class Same(NamedTuple):
    """One tensor, unchanged."""

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return list(ours)

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return list(theirs)


class Transpose(NamedTuple):
    """One matrix, transposed."""

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [ours[0].t()]

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [theirs[0].t()]


class Split(NamedTuple):
    """Our one tensor is theirs one after another along the first axis, in equal parts (fused query, key and value)."""

    parts: int

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return list(ours[0].chunk(self.parts))

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat(list(theirs))]


class Stack(NamedTuple):
    """Our (1, D) and (N, D) are their (1 + N, D), with ``lead`` axes of length one before it."""

    lead: int = 0

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        joined = torch.cat(list(ours))
        return [joined.view((1,) * self.lead + tuple(joined.shape))]

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        joined = theirs[0].reshape(theirs[0].shape[-2:])
        return [joined[:1], joined[1:]]


class Row(NamedTuple):
    """Our (1, D) or (1,) has ``lead`` axes of length one before its last axis in theirs; -1: theirs is a scalar."""

    lead: int

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        last = () if self.lead < 0 else (ours[0].shape[-1],)
        return [ours[0].reshape((1,) * max(self.lead, 0) + last)]

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [theirs[0].reshape(1) if self.lead < 0 else theirs[0].reshape(1, -1)]


class Rows(NamedTuple):
    """Our rows in another order: row k of ours is row ``order[k]`` of theirs (which class of a head means what)."""

    order: tuple[int, ...]

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [ours[0][[self.order.index(k) for k in range(len(self.order))]]]

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [theirs[0][list(self.order)]]


class After(NamedTuple):
    """Ours has no place for the first ``rows`` of theirs, which are not used there and written as zeros."""

    rows: int

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat([ours[0].new_zeros(self.rows, *ours[0].shape[1:]), ours[0]])]

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [theirs[0][self.rows :]]


class Twice(NamedTuple):
    """One tensor of ours that theirs has under two names."""

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [ours[0], ours[0]]

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return [theirs[0]]


class Transposed(NamedTuple):
    """Matrices that theirs keeps as (in, out), with another change beside that."""

    inner: Op

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [x.t() for x in self.inner.to_theirs(ours)]

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        return self.inner.to_ours([x.t() for x in theirs])


class Rule(NamedTuple):
    """Names may hold ``{i}`` and ``{j}`` (numbers) and ``{p}`` (weight, bias, running_mean, ...), the same on both sides.

    ``optional``: the rule may find nothing.
    """

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    op: Op = Same()
    optional: bool = False


def _names(side: str | tuple[str, ...]) -> tuple[str, ...]:
    return (side,) if isinstance(side, str) else side


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(_PLACE.sub(lambda m: f"(?P<{m[1]}>{_PATTERNS[m[1]]})", re.escape(pattern)) + r"\Z")


def _fill(pattern: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        pattern = pattern.replace("{" + name + "}", value)
    return pattern


class Converted(NamedTuple):
    """A converted state, and the names of the source that no rule claimed."""

    state: dict[str, Tensor]
    leftover: tuple[str, ...]


class KeyMap:
    """A two-way map.

    Args:
        rules: tried in order; a tensor is claimed once.
        foreign: what the other side is called in messages.
    """

    def __init__(self, rules: Sequence[Rule], foreign: str) -> None:
        self.rules, self.foreign = tuple(rules), foreign

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state under their names, contiguous, sharing no storage.

        Raises:
            KeyMapError: something is missing, or some tensor of ours has no home there.
        """
        done = self._convert(state, "ours", "theirs")
        if done.leftover:
            raise KeyMapError(f"no place in {self.foreign} for: {', '.join(done.leftover[:8])}")
        return done.state

    def to_ours(self, state: Mapping[str, Tensor]) -> Converted:
        """Their state under our names, and what was left over (heads and buffers that the caller must judge).

        Raises:
            KeyMapError: something is missing.
        """
        return self._convert(state, "theirs", "ours")

    def _convert(self, state: Mapping[str, Tensor], source: str, target: str) -> Converted:
        out: dict[str, Tensor] = {}
        claimed: set[str] = set()
        for rule in self.rules:
            names, goals = _names(getattr(rule, source)), _names(getattr(rule, target))
            regex, found = _regex(names[0]), False
            for name in [n for n in state if n not in claimed]:
                match = regex.match(name)
                if match is None:
                    continue
                found = True
                sources = [_fill(n, match.groupdict()) for n in names]
                missing = [n for n in sources if n not in state]
                if missing:
                    raise KeyMapError(f"{self.foreign}: {name} is there but {', '.join(missing)} is not")
                change = rule.op.to_theirs if target == "theirs" else rule.op.to_ours
                try:
                    tensors = change([state[n] for n in sources])
                except (RuntimeError, IndexError) as error:
                    shapes = ", ".join(f"{n} {tuple(state[n].shape)}" for n in sources)
                    raise KeyMapError(f"{self.foreign}: shapes do not fit: {shapes} ({str(error).splitlines()[0]})") from None
                claimed.update(sources)
                for goal, tensor in zip(goals, tensors, strict=True):
                    out[_fill(goal, match.groupdict())] = tensor.clone(memory_format=torch.contiguous_format)
            if not found and not rule.optional:
                raise KeyMapError(f"{self.foreign}: nothing is called {names[0]}")
        return Converted(out, tuple(n for n in state if n not in claimed))


def strip(state: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """The tensors under the first prefix that occurs, without it; everything where none occurs."""
    for prefix in prefixes:
        if any(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    return dict(state)
