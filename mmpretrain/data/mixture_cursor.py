"""The position in a mixture. Every source has its own epoch and samples in the state, and what it was: nothing changes in silence."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from mmpretrain.data.cursor import VERSION, Cursor, explain
from mmpretrain.data.errors import ResumeError
from mmpretrain.data.feed import Item
from mmpretrain.data.track import BucketTrack, Place

_CHANGES_KEPT = 3
_FACTS = {
    "as": "what is read", "shards": "the fingerprint of the shards", "max_epochs": "max_epochs", "after": "after", "weight": "the weight"
}  # fmt: skip


class MixtureCursor(Cursor, ABC):
    """What both kinds of mixtures share: the check of a saved position."""

    kind: str

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.facts = {part.name: facts for part, facts in zip(self.feed.parts, self.identity.pop("sources").values(), strict=True)}
        self.changes: list[str] = []

    def state(self) -> dict[str, Any]:
        found = {"version": VERSION, "mix": self.kind, **self.position(), **self.identity}
        found["sources"] = {name: {**where, **self.facts[name]} for name, where in self.wheres().items()}
        return found | ({"changes": self.changes} if self.changes else {})

    @abstractmethod
    def position(self) -> dict[str, Any]:
        """The position apart from the sources."""

    @abstractmethod
    def wheres(self) -> dict[str, dict[str, int]]:
        """The position of every source."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any], changed: bool) -> None:
        """Go to a position that was checked."""

    def load(self, state: Mapping[str, Any]) -> None:
        if not state:
            return
        changes = self._compare(state)
        if changes and not self.allow_change:
            raise ResumeError(f"data: {changes[0]}; set it back, or set data.allow_data_change=true, which records the change")
        if state.get("batch_size") != self.feed.batch_size and not self.bucketed:  # buckets go on from the next window
            self._check_multiples(state)
        self.changes = list(state.get("changes", []))
        self.restore(state, bool(changes))
        if changes:
            self.warnings += [f"data: {change}" for change in changes]
            self.changes = [*self.changes, f"step {self.steps}: {changes[0]}" + (" and more" if len(changes) > 1 else "")][-_CHANGES_KEPT:]

    @abstractmethod
    def consumed_of(self, state: Mapping[str, Any]) -> dict[str, int]:
        """Of a saved position: what is counted in batches (" of ..." for messages) -> samples consumed of its present epoch."""

    def _check_multiples(self, state: Mapping[str, Any]) -> None:
        size = self.feed.batch_size
        for what, samples in self.consumed_of(state).items():
            if samples % size:
                raise ResumeError(
                    f"data: the run consumed {samples} samples of this epoch{what}, which is no multiple of data.batch_size={size}; "
                    f"continue with data.batch_size={state.get('batch_size')}"
                )

    def _compare(self, state: Mapping[str, Any]) -> list[str]:
        """What differs from the saved run and may be accepted; anything else is an error."""
        if "version" not in state or state["version"] != VERSION:
            raise ResumeError(f"data: the saved position has version {state.get('version')}, this is {VERSION}; it cannot be continued")
        if state.get("mix") != self.kind:
            then = f"data.mix={state['mix']}" if "mix" in state else "one source"
            raise ResumeError(f"data: the checkpoint was trained with {then}, not data.mix={self.kind}: the order would be another one")
        changes = []
        for name, value in self.identity.items():
            if state.get(name) != value:
                if name != "batch_size":
                    raise ResumeError(explain(name, state.get(name), value))
                changes.append(f"data.batch_size was {state.get(name)} in the checkpoint and is {value}")
        if "buckets" in state and "buckets" not in self.identity:
            raise ResumeError(explain("buckets", state["buckets"], None))
        saved = state["sources"]
        changes += [f"source {name!r} of the checkpoint is gone" for name in saved if name not in self.facts]
        changes += [f"source {name!r} was not in the checkpoint" for name in self.facts if name not in saved]
        for key, what in _FACTS.items():  # weights last: they follow from the rest
            for name in (name for name in self.facts if name in saved):
                then, now = saved[name].get(key), self.facts[name].get(key)
                line = f"{what} of source {name!r} was {then} in the checkpoint and is {now}"
                if then != now and key == "as":
                    raise ResumeError(f"data: {line}: its samples would be others; set it back")
                changes += [line] if then != now else []
        return changes


class SampleMixtureCursor(MixtureCursor):
    """Of ``mix: sample``: one track, the positions of the sources follow from it."""

    kind = "sample"

    def _counts(self) -> list[int]:
        order = self.feed.mixed
        return order.blend.counts(order.turn(self.place.epoch, self.samples)).tolist()

    def consumed(self) -> dict[str, int]:
        return dict(zip(self.feed.names, self._counts(), strict=True))

    def position(self) -> dict[str, Any]:
        found = {"epoch": self.place.epoch, "samples": self.samples, "steps": self.steps, "start": list(self.feed.mixed.start)}
        return found | ({"window": self.place.window, "batch": self.place.batch} if self.bucketed else {})

    def wheres(self) -> dict[str, dict[str, int]]:
        before = self.feed.mixed.blend.segments[0].counts.tolist()
        rows = zip(self.feed.parts, self._counts(), before, strict=True)
        return {
            part.name: {"epoch": count // part.units.total, "samples": count % part.units.total, "before": first}
            for part, count, first in rows
        }

    def consumed_of(self, state: Mapping[str, Any]) -> dict[str, int]:
        return {"": int(state["samples"])}

    def restore(self, state: Mapping[str, Any], changed: bool) -> None:
        epoch, samples, saved = int(state["epoch"]), int(state["samples"]), state["sources"]
        self.steps = int(state["steps"])
        if not changed:
            self.feed.rebase((int(state["start"][0]), int(state["start"][1])), [int(saved[name]["before"]) for name in self.feed.names])
            track = self.feed.tracks[0]
            self.place = Place(epoch, int(state["window"]), int(state["batch"])) if self.bucketed else track.settle(epoch, samples)
            self.samples = samples
            return
        counts = []
        for part in self.feed.parts:
            where = saved.get(part.name, {"epoch": 0, "samples": 0})
            counts.append(int(where["epoch"]) * part.units.total + min(int(where["samples"]), part.units.total))
        track = self.feed.tracks[0]
        self.place = track.settle(epoch, samples)
        self.samples = self.place.window * (track.size if isinstance(track, BucketTrack) else track.batch_size)
        self.feed.rebase((self.place.epoch, self.samples), counts)


class BatchMixtureCursor(MixtureCursor):
    """Of ``mix: batch``: a place in every track, and whose turn it is."""

    kind = "batch"

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.places = [Place(0)] * len(self.feed.parts)
        self.own = [0] * len(self.feed.parts)  # samples consumed of the present epoch of each source
        self.seen = [0] * len(self.feed.parts)  # samples consumed of each source since the run began
        self.turn = 0

    @property
    def epoch(self) -> int:
        return self.steps // self.feed.steps

    def copy(self) -> Cursor:
        made = copy.copy(self)
        made.places, made.own, made.seen = list(self.places), list(self.own), list(self.seen)
        return made

    def _active(self) -> tuple[int, ...]:
        parts = self.feed.parts
        limits = ((place.epoch, part.max_epochs) for place, part in zip(self.places, parts, strict=True))
        left = {number for number, (epoch, most) in enumerate(limits) if most is not None and epoch >= most}
        return tuple(n for n, part in enumerate(parts) if n not in left and (part.after is None or part.after in left))

    def item(self) -> Item:
        number = self.feed.turn(self._active(), self.turn)
        return Item(number, *self.places[number])

    def advance(self) -> None:
        active = self._active()
        number = self.feed.turn(active, self.turn)
        track, place = self.feed.tracks[number], self.places[number]
        samples, after = track.samples(place), track.after(place)
        self.own[number] = 0 if after.epoch != place.epoch else self.own[number] + samples
        self.seen[number] += samples
        self.places[number] = after
        self.turn = self.turn + 1 if self._active() == active else 0  # a source has left: the others share its turns from here on
        self.steps += 1

    def consumed(self) -> dict[str, int]:
        return dict(zip(self.feed.names, self.seen, strict=True))

    def position(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "steps": self.steps, "turn": self.turn}

    def wheres(self) -> dict[str, dict[str, int]]:
        found = {}
        for name, place, own, seen in zip(self.feed.names, self.places, self.own, self.seen, strict=True):
            found[name] = {"epoch": place.epoch, "window": place.window, "batch": place.batch, "samples": own, "seen": seen}
        return found

    def consumed_of(self, state: Mapping[str, Any]) -> dict[str, int]:
        saved = state["sources"]
        return {f" of source {name!r}": int(saved[name]["samples"]) for name in self.feed.names if name in saved}

    def restore(self, state: Mapping[str, Any], changed: bool) -> None:
        self.steps, self.turn = int(state["steps"]), 0 if changed else int(state["turn"])
        for number, name in enumerate(self.feed.names):
            if (where := state["sources"].get(name)) is None:
                continue
            self.places[number] = Place(int(where["epoch"]), int(where["window"]), int(where["batch"]))
            self.own[number], self.seen[number] = int(where["samples"]), int(where["seen"])
            if changed and (where["shards"] != self.facts[name]["shards"] or state["batch_size"] != self.feed.batch_size):
                track = self.feed.tracks[number]
                self.places[number] = track.settle(self.places[number].epoch, self.own[number])
                self.own[number] = self.places[number].window * (track.size if isinstance(track, BucketTrack) else track.batch_size)
