"""The position in the data: how many samples of which epoch optimiser steps have consumed. O(1) to save and to restore."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmpretrain.data.errors import ResumeError
from mmpretrain.data.feed import Feed, Item
from mmpretrain.data.track import BucketTrack, Place

VERSION = 1


class Cursor:
    """Counts optimiser steps, not fetched batches: what was prefetched when a run died was not consumed. This one is of a single track;
    ``mixture_cursor`` has those of mixtures.

    Args:
        feed: what the run is fed with.
        identity: what must be equal for a position to mean the same samples.
        allow_change: accept other shards, and another batch size where the position is a multiple of it.
    """

    def __init__(self, feed: Feed, identity: Mapping[str, Any], allow_change: bool = False) -> None:
        self.feed, self.identity, self.allow_change = feed, dict(identity), allow_change
        self.place, self.samples, self.steps = Place(0), 0, 0  # samples: consumed of this epoch; steps: since the run began
        self.warnings: list[str] = []  # what a load accepted although it differs

    @property
    def epoch(self) -> int:
        return self.place.epoch

    @property
    def step(self) -> int:
        """Optimiser steps of this epoch that are done."""
        return self.steps % self.feed.steps

    @property
    def bucketed(self) -> bool:
        return isinstance(self.feed.tracks[0], BucketTrack)

    def copy(self) -> Cursor:
        """A cursor that goes on by itself."""
        return copy.copy(self)

    def item(self) -> Item:
        """The batch at this position."""
        return Item(0, *self.place)

    def advance(self) -> None:
        """One step further; the last of an epoch leads to the first of the next."""
        self.samples += self.feed.tracks[0].samples(self.place)
        self.move(self.feed.tracks[0].after(self.place))
        self.steps += 1

    def move(self, place: Place) -> None:
        """Go to a place; the samples of an epoch are counted from its start."""
        if place.epoch != self.place.epoch:
            self.samples = 0
        self.place = place

    def consumed(self) -> dict[str, int]:
        """Samples of the whole run by source of a mixture."""
        return {}

    def state(self) -> dict[str, Any]:
        """Plain types."""
        found = {"version": VERSION, "epoch": self.place.epoch, "samples": self.samples, **self.identity}
        if self.bucketed:
            found |= {"window": self.place.window, "batch": self.place.batch, "steps": self.steps}
        return found

    def load(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position.

        Raises:
            ResumeError: naming what differs and the remedy.
        """
        if not state:
            return
        self.check(state)
        epoch, samples = int(state["epoch"]), int(state["samples"])
        track, size = self.feed.tracks[0], self.feed.batch_size
        if isinstance(track, BucketTrack):
            self.place = Place(epoch, int(state["window"]), int(state["batch"]))
            self.samples, self.steps = samples, int(state["steps"])
            if self.warnings:  # other shards or another size: on from the next window
                self.place = track.settle(epoch, samples)
                self.samples = self.place.window * track.size
            return
        if samples % size:
            raise ResumeError(
                f"data: the run consumed {samples} samples of this epoch, which is no multiple of data.batch_size={size}; "
                f"continue with data.batch_size={state['batch_size']}"
            )
        self.place, self.samples = track.settle(epoch, samples), samples
        if self.place.epoch != epoch:
            self.samples = 0
        self.steps = self.place.epoch * track.steps + self.place.window

    def check(self, state: Mapping[str, Any]) -> None:
        """That a saved position belongs to these data and options."""
        if "sources" in state:
            raise ResumeError(
                f"data: the checkpoint was trained on a mixture of {', '.join(state['sources'])}; name these sources in data.train"
            )
        state, identity = {"show": "image", **state}, {"show": "image", **self.identity}  # not written where it is this
        needed = ("version", "epoch", "samples", *(("window", "batch", "steps") if self.bucketed else ()), *self.identity)
        missing = [name for name in needed if name not in state]
        if "buckets" in state and "buckets" not in self.identity:
            raise ResumeError(explain("buckets", state["buckets"], None))
        if "buckets" in missing:
            raise ResumeError(explain("buckets", None, self.identity["buckets"]))
        if missing or state["version"] != VERSION:
            reason = f"lacks {', '.join(missing)}" if missing else f"has version {state['version']}, this is {VERSION}"
            raise ResumeError(f"data: the saved position {reason}; it was written by another version of mmpretrain and cannot be continued")
        for name, value in identity.items():
            if state[name] == value:
                continue
            if name not in ("fingerprint", "batch_size") or not self.allow_change:
                raise ResumeError(explain(name, state[name], value))
            self.warnings.append(explain(name, state[name], value))


def explain(name: str, saved: Any, now: Any) -> str:
    """One line on an option that differs from the checkpoint's."""
    if name == "fingerprint":
        return (
            f"data: the training shards are not those of the checkpoint (fingerprint {str(saved)[:12]} then, {str(now)[:12]} now, "
            "their quarantine list included); restore them, or set data.allow_data_change=true"
        )
    if name == "batch_size":
        return f"data: the checkpoint was trained with data.batch_size={saved}, not {now}; set it back, or set data.allow_data_change=true"
    return f"data: the checkpoint was trained with data.{name}={saved}, not {now}: the order would be another one; set it back"
