"""What each worker of a loader is doing, so that a worker that is stuck or was killed can be named with the sample it was at.

A worker writes into memory that it shares with the training process; what it wrote last outlives it. Workers leave signals that are meant
for the run alone: SIGINT and SIGUSR1, which a terminal or a scheduler sends to all processes at once, and SIGTERM unless it comes from the
training process. Otherwise they would die first, and the run could not save. On SIGUSR2 a worker writes its stack to stderr.
"""

from __future__ import annotations

import faulthandler
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from mmpretrain.data import shared

_ROW, _HEAD = 1024, 24  # bytes of a worker's row; three int64: pid, nanoseconds of the monotonic clock, length of the text (0: idle)
DUMP = signal.SIGUSR2
T = TypeVar("T")

_row: np.ndarray | None = None  # of this process, where it is a worker
_last = ""  # what this process was last at


class Doing(NamedTuple):
    """State of one worker."""

    worker: int
    pid: int  # 0: it has not started
    seconds: float  # since it said so
    at: str  # "" where it waits for work

    def __str__(self) -> str:
        return f"worker {self.worker} (pid {self.pid}) " + (f"is at {self.at} for {self.seconds:.1f} s" if self.at else "waits for work")


def note(what: str) -> None:
    """Say what this process is at: a shard and a key."""
    global _last
    _last = what
    if _row is not None:
        text = what.encode(errors="replace")[: _ROW - _HEAD]
        _row[_HEAD : _HEAD + len(text)] = np.frombuffer(text, np.uint8)
        _row[8:_HEAD].view(np.int64)[:] = (time.monotonic_ns(), len(text))


def idle() -> None:
    """Say that an item is done."""
    if _row is not None:
        _row[8:_HEAD].view(np.int64)[:] = (time.monotonic_ns(), 0)


def last() -> str:
    """What this process said last."""
    return _last


def item(read: Callable[..., T]) -> Callable[..., T]:
    """A ``__getitem__`` whose errors name the sample that this process was at, and that says when it is done. In a worker its tensors lie
    in shared memory: a lack of that is an error of the item."""

    @functools.wraps(read)
    def told(*args: Any) -> T:
        try:
            found = read(*args)
            found = found if _row is None else shared.share(found)
        except Exception as error:
            error.add_note(f"mmpretrain: while at {_last}")
            raise
        idle()
        return found

    return told


class Board:
    """The ``worker_init_fn`` of a loader, and what its workers said, for the process that made it.

    Args:
        workers: of the loader.
    """

    def __init__(self, workers: int) -> None:
        with shared.room():
            self.rows_WN = torch.zeros(workers, _ROW, dtype=torch.uint8).share_memory_()

    def __call__(self, worker: int) -> None:
        """In worker number ``worker``, when it starts."""
        global _row
        _row = self.rows_WN[worker].numpy()
        _row[:8].view(np.int64)[0] = os.getpid()
        faulthandler.register(DUMP, all_threads=True)
        for number in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # inherited by every thread from here on
        threading.Thread(target=_wait_for_the_parent, daemon=True).start()

    def read(self) -> list[Doing]:
        """The workers, those longest at a sample first."""
        now, found = time.monotonic_ns(), []
        for worker, row in enumerate(self.rows_WN.numpy()):
            pid, since, length = row[:_HEAD].view(np.int64).tolist()
            text = bytes(row[_HEAD : _HEAD + max(0, min(length, _ROW - _HEAD))]).decode(errors="replace")
            found.append(Doing(worker, pid, max(0.0, (now - since) / 1e9), text))
        return sorted(found, key=lambda one: (not one.at, -one.seconds))


class Loader(DataLoader):
    """A loader whose workers start with SIGTERM blocked in every thread: libraries that restart threads of their own after a fork (those of
    OpenTelemetry, which W&B brings) would let it kill the worker."""

    def __iter__(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            with shared.room():
                return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for_the_parent() -> None:
    """Leave on a SIGTERM of the training process, or when that is gone; let others pass."""
    parent = multiprocessing.parent_process()
    while parent is not None:
        told = signal.sigwaitinfo({signal.SIGTERM})
        if told.si_pid == parent.pid or not parent.is_alive():
            os._exit(0)


def boards(loaders: Sequence[Any]) -> list[tuple[Any, Board]]:
    """The loaders that have a board and workers at present."""
    pairs = [(loader, getattr(loader, "worker_init_fn", None)) for loader in loaders]
    return [(loader, board) for loader, board in pairs if isinstance(board, Board) and getattr(loader, "_iterator", None) is not None]


def end(loaders: Sequence[Any]) -> None:
    """End the workers of these loaders. Whoever reads on starts them again."""
    for loader in loaders:
        if (stop := getattr(getattr(loader, "_iterator", None), "_shutdown_workers", None)) is not None:
            stop()
            loader._iterator = None


def dead(loader: Any) -> dict[int, int]:
    """Worker number -> exit code, of those that have ended."""
    processes = getattr(getattr(loader, "_iterator", None), "_workers", ())
    return {number: process.exitcode for number, process in enumerate(processes) if process.exitcode is not None}


def report(loaders: Sequence[Any]) -> list[str]:
    """Lines that say what the workers of these loaders are at, and which have ended and how."""
    lines = []
    for loader, board in boards(loaders):
        gone = dead(loader)
        for doing in board.read():
            if not doing.pid:
                continue
            code = gone.get(doing.worker)
            if code is not None:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                at = f" at {doing.at}" if doing.at else ""
                lines.append(f"worker {doing.worker} (pid {doing.pid}) {how}{at}")
            else:
                lines.append(str(doing))
    return lines


def dump(loaders: Sequence[Any]) -> None:
    """Make the living workers that are at a sample write their stacks to stderr, and give them a second to do so."""
    asked = False
    for loader, board in boards(loaders):
        gone = dead(loader)
        for doing in board.read():
            if doing.pid and doing.at and doing.worker not in gone:
                os.kill(doing.pid, DUMP)
                asked = True
    if asked:
        time.sleep(1.0)
