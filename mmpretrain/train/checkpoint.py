"""When checkpoints are written, which are kept, and how ``last`` and ``best`` are found again.

Layout of a folder: ``step-00000100.ckpt`` with its manifest ``step-00000100.ckpt.json``; ``last.ckpt`` and ``best.ckpt`` are relative
links, replaced atomically.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from mmpretrain.train import distributed
from mmpretrain.train.atomic import AtomicCheckpointIO, CheckpointError, choose, point, steps_in


class Checkpoints(Checkpoint):
    """Saves every N steps, at the best validation and at the end; keeps the last k and the best.

    Args:
        directory: folder; None: ``checkpoints`` in the run directory.
        every_n_steps: optimiser steps between saves; None: only at validation improvements and at the end.
        keep_last: newest checkpoints that are kept, at least 2 (the newest may be the one a crash tore).
        monitor: metric for ``best``; None: no best.
        mode: whether ``monitor`` should be small or large.
        max_failures: so many failed saves in a row (disk full, no permission) stop the run; before that it goes on, saying so.
    """

    def __init__(
        self,
        directory: str | None = None,
        every_n_steps: int | None = 1000,
        keep_last: int = 3,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        max_failures: int = 3,
    ) -> None:
        if keep_last < 2:
            raise ValueError(f"Checkpoints: keep_last={keep_last} must be at least 2")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"Checkpoints: every_n_steps={every_n_steps} must be at least 1")
        self.given, self.every_n_steps, self.keep_last = directory, every_n_steps, keep_last
        self.monitor, self.mode, self.max_failures = monitor, mode, max_failures
        self.directory: Path | None = None
        self.best: tuple[float, str] | None = None  # (score, file name)
        self.saved_step = -1
        self.failures = 0
        self.seconds = 0.0  # spent saving, for the speed metrics

    def find(self, trainer: pl.Trainer) -> Path:
        """The folder, the same on every rank."""
        if self.directory is None:
            here = self.given or os.path.join(trainer.default_root_dir, "checkpoints")
            self.directory = Path(distributed.broadcast_object(here))
        return self.directory

    @property
    def best_model_path(self) -> str:
        """Path of the best checkpoint, '' if there is none."""
        return "" if self.best is None or self.directory is None else str(self.directory / self.best[1])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO(tolerant=True)
        directory = self.find(trainer)
        if stage == "fit" and trainer.is_global_zero:
            directory.mkdir(parents=True, exist_ok=True)
            for leftover in directory.glob(".*.tmp-*"):  # of a killed run
                leftover.unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if due or trainer.global_step == trainer.max_steps:  # the last one here, where Lightning still counts the epoch as unfinished
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ValueError(f"Checkpoints: monitor={self.monitor!r} is not among the metrics: {known}")
        score = float(value)
        if score == score and (self.best is None or (score < self.best[0] if self.mode == "min" else score > self.best[0])):
            before, self.best = self.best, (score, self._name(trainer))
            if not self.save(trainer, again=True):
                self.best = before
            elif trainer.is_global_zero:
                point(self.directory / "best.ckpt", self.directory / self.best[1])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step > 0 and self.saved_step != trainer.global_step:
            self.save(trainer)

    @staticmethod
    def _name(trainer: pl.Trainer) -> str:
        return f"step-{trainer.global_step:08d}.ckpt"

    def save(self, trainer: pl.Trainer, again: bool = False) -> bool:
        """Save now, on every rank together; False when the disk refused. ``again``: also when this step is saved already (its metrics
        have changed)."""
        if self.saved_step == trainer.global_step and not again:
            return True
        began = time.perf_counter()
        if (settle := getattr(trainer.lightning_module, "settle", None)) is not None:
            settle()
        directory = self.find(trainer)
        path = directory / self._name(trainer)
        trainer.save_checkpoint(path)
        error = distributed.broadcast_object(str(getattr(trainer.strategy.checkpoint_io, "error", None) or ""))
        if error:
            self.failures += 1
            rank_zero_warn(f"checkpoint not saved ({self.failures} of {self.max_failures} failures allowed): {error}")
            if self.failures >= self.max_failures:
                raise CheckpointError(f"{self.failures} saves in a row failed, the last with: {error}")
            return False
        self.failures, self.saved_step = 0, trainer.global_step
        if trainer.is_global_zero:
            point(directory / "last.ckpt", path)
            self._prune(directory, trainer.strategy.checkpoint_io)
        self.seconds += time.perf_counter() - began
        return True

    def _prune(self, directory: Path, io: AtomicCheckpointIO) -> None:
        best = directory / "best.ckpt"
        kept = {self.best[1] if self.best else "", best.resolve().name if best.exists() else ""}
        for old in steps_in(directory)[self.keep_last :]:
            if old.name not in kept:
                io.remove_checkpoint(old)

    def state_dict(self) -> dict[str, Any]:
        return {"best": None if self.best is None else list(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict.get("best")
        self.best = None if best is None else (float(best[0]), str(best[1]))


def resolve(spec: str, directory: Path) -> Path | None:
    """The path for ``--ckpt_path``: ``last`` and ``best`` in ``directory``, a run folder, a checkpoint folder, or a file.

    Returns:
        a path for ``Trainer.fit``; None for ``last`` where there is no checkpoint yet (the run starts at the beginning).

    Raises:
        CheckpointError: no such file, or no best one.
    """
    if spec == "last":
        if not steps_in(directory):
            rank_zero_info(f"{directory}: no checkpoint yet, the run starts at the beginning")
            return None
        return directory / "last.ckpt"
    if spec == "best":
        best = directory / "best.ckpt"
        if not best.exists():
            raise CheckpointError(f"{directory}: no best checkpoint; name a metric in Checkpoints.monitor, or use last")
        return best
    path = Path(spec)
    if path.is_dir():
        for folder in (path / "checkpoints", path):
            if steps_in(folder):
                return folder / "last.ckpt"
        raise CheckpointError(f"{path}: no checkpoint in this folder")
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    return path


__all__ = ["CheckpointError", "Checkpoints", "choose", "resolve"]
