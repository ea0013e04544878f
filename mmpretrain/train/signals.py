"""Signals: the handler only sets a flag; ranks agree at a step boundary, save once and stop.

Exit code: 143 after SIGTERM, 130 after SIGINT, 138 after SIGUSR1 (0 when the job was requeued under SLURM). A second signal of the three
ends the process at once, without saving: after the first one they have the default action, which needs no interpreter.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from mmpretrain.train import distributed, events
from mmpretrain.train.checkpoint import Checkpoints

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Preemption(pl.Callback):
    """Saves and stops on SIGTERM, SIGINT or SIGUSR1, all ranks at the same step, even when one rank alone was told.

    Args:
        every: optimiser steps (or validation batches) between the questions to the other ranks, on the host alone.
        requeue: under SLURM, put the job back into the queue after SIGUSR1 (``sbatch --signal=USR1@180``).
    """

    def __init__(self, every: int = 10, requeue: bool = True) -> None:
        if every < 1:
            raise ValueError(f"Preemption: every={every} must be at least 1")
        self.every, self.requeue = every, requeue
        self.received = 0
        self._before: dict[int, Any] = {}
        self._owner = -1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        for one in SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        if os.getpid() != self._owner:  # a process forked by the run: the default holds
            os.kill(os.getpid(), number)
        self.received = number

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.received, self._owner = 0, os.getpid()
        if threading.current_thread() is not threading.main_thread():  # no other may set handlers
            return
        for number in SIGNALS:  # after Lightning's own, whose handlers save and talk to other ranks inside the handler
            self._before[number] = signal.signal(number, self._handle)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._ask(trainer, trainer.global_step)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._before:  # within fit, after its first step
            self._ask(trainer, batch_idx + 1)

    def _ask(self, trainer: pl.Trainer, turn: int) -> None:
        """Whether any rank was told; then save and leave."""
        if distributed.is_distributed() and turn % self.every:
            return
        number = distributed.host_max(self.received)
        if not number:
            return
        keeper = next((callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)), None)
        saved = keeper.save(trainer) if keeper is not None else False
        name = signal.Signals(number).name
        rank_zero_info(f"{name}: stop after step {trainer.global_step}, {'continue with --ckpt_path last' if saved else 'nothing saved'}")
        events.note(trainer, "signal", name=name, saved=saved)
        requeued = number == signal.SIGUSR1 and self.requeue and trainer.is_global_zero and saved and requeue()
        self._restore()
        raise SystemExit(0 if distributed.broadcast_object(requeued) else 128 + number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()


def requeue() -> bool:
    """Ask SLURM to queue this job again; False outside SLURM or when it refuses."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        rank_zero_info(f"scontrol requeue {job} failed: {error}")
        return False
    if done.returncode:
        rank_zero_info(f"scontrol requeue {job} failed: {done.stderr.strip()}")
    return done.returncode == 0
