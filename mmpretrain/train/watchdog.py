"""Names what a run is waiting for: the worker of a loader with its shard and key, or the line in which a process stands."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from typing import Any

import lightning.pytorch as pl

from mmpretrain.data import working
from mmpretrain.train import events

_DUMP = 1.0  # seconds that the stacks of workers take at most to appear


class Watchdog(pl.Callback):
    """When no step ends for so long, says whether data or the step is waited for and what every worker is at, and writes the stacks of
    all threads and of the busy workers to stderr. When a run ends by an error of a loader (a worker was killed, or is silent for longer
    than ``data.timeout``), the same is said with the error.

    Args:
        seconds: patience.
        stop: end the process (exit code 1) after the stacks are written; other ranks then end too.
    """

    def __init__(self, seconds: float = 1800.0, stop: bool = False) -> None:
        if seconds <= 0:
            raise ValueError(f"Watchdog: seconds={seconds} must be positive")
        self.seconds, self.stop = seconds, stop
        self._beat, self._in_step = 0.0, False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def _touch(self, in_step: bool) -> None:
        self._beat, self._in_step = time.monotonic(), in_step
        # a second line of defence, for a process whose interpreter does not run
        faulthandler.dump_traceback_later(2 * self.seconds, exit=self.stop, file=sys.__stderr__)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._touch(False)
        self._over.clear()
        self._thread = threading.Thread(target=self._watch, args=(trainer,), name="watchdog", daemon=True)
        self._thread.start()

    def on_train_batch_start(self, *_: Any) -> None:
        self._touch(True)

    def on_train_batch_end(self, *_: Any) -> None:
        self._touch(False)

    def on_validation_batch_start(self, *_: Any) -> None:
        if self._thread is not None:
            self._touch(True)

    def on_validation_batch_end(self, *_: Any) -> None:
        if self._thread is not None:
            self._touch(False)

    def _watch(self, trainer: pl.Trainer) -> None:
        while not self._over.wait(min(self.seconds / 4, 10.0)):
            waited = time.monotonic() - self._beat
            if waited < self.seconds:
                continue
            what = "a step has not ended" if self._in_step else "the loader gives nothing"
            lines = [f"rank {trainer.global_rank}: {what} for {waited:.0f} s after step {trainer.global_step}", *described(trainer)]
            events.note(trainer, "stalled", seconds=round(waited, 1), report=lines)
            say(lines)
            show_stacks(trainer)
            if self.stop:
                os._exit(1)
            self._beat = time.monotonic()

    def _end(self) -> None:
        self._over.set()
        self._thread = None
        faulthandler.cancel_dump_traceback_later()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end()
        if "DataLoader" in str(exception):
            lines = described(trainer)
            events.note(trainer, "worker_failed", error=str(exception).splitlines()[0], report=lines)
            say(lines)
            for line in lines:
                exception.add_note(f"mmpretrain: {line}")
            if "timed out" in str(exception):
                show_stacks(trainer)


def loaders(trainer: pl.Trainer) -> list[Any]:
    """The loaders that a trainer has at present."""
    found = [trainer.train_dataloader, trainer.val_dataloaders]
    return [one for group in found if group is not None for one in (group if isinstance(group, list | tuple) else [group])]


def described(trainer: pl.Trainer) -> list[str]:
    """What every worker is at; without workers, the sample that was read last."""
    lines = working.report(loaders(trainer))
    return lines or ([f"the sample read last: {working.last()}"] if working.last() else [])


def say(lines: list[str]) -> None:
    """Lines to stderr, also where the interpreter is about to end."""
    print(*(f"mmpretrain: {line}" for line in lines), sep="\n", file=sys.__stderr__, flush=True)


def show_stacks(trainer: pl.Trainer) -> None:
    """Stacks of all threads of this process and of the workers that are at a sample, to stderr."""
    working.dump(loaders(trainer))
    faulthandler.dump_traceback(all_threads=True, file=sys.__stderr__)
    time.sleep(_DUMP)
