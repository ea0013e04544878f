"""When checkpoints are written, which are kept, and how ``last`` and ``best`` are found again.

Layout of a folder: ``step-00000100.ckpt`` with its manifest ``step-00000100.ckpt.json``; ``last.ckpt`` and ``best.ckpt`` are relative
links, replaced atomically. Checkpoints of a future that was given up lie in ``aside-1``, ``aside-2`` and so on.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from mmpretrain.train import distributed, events
from mmpretrain.train.atomic import AtomicCheckpointIO, CheckpointError, choose, fault, manifest_path, point, steps_in, write_text


class Checkpoints(Checkpoint):
    """Saves every N steps or M minutes, at the best validation and at the end; keeps the last k whole ones and the best. A save is read
    again and compared with its manifest before ``last`` points to it and an older one is removed.

    Args:
        directory: folder; None: ``checkpoints`` in the run directory, which else links to it.
        every_n_steps: optimiser steps between saves; None: none for their number.
        every_minutes: minutes between saves, by the clock of rank 0, looked at every tenth step with several ranks; None: none for time.
        keep_last: newest whole checkpoints that are kept, at least 2 (the newest may be the one a crash tore).
        monitor: metric for ``best``; None: no best.
        mode: whether ``monitor`` should be small or large.
        max_failures: so many failed saves in a row (less room than twice the last checkpoint, disk full, no permission, not as written
            when read again) stop the run; before that it goes on, says so, and counts them in ``events/checkpoint_failed``.
    """

    def __init__(
        self,
        directory: str | None = None,
        every_n_steps: int | None = 1000,
        every_minutes: float | None = None,
        keep_last: int = 3,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        max_failures: int = 3,
    ) -> None:
        if keep_last < 2:
            raise ValueError(f"Checkpoints: keep_last={keep_last} must be at least 2")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"Checkpoints: every_n_steps={every_n_steps} must be at least 1")
        if every_minutes is not None and every_minutes <= 0:
            raise ValueError(f"Checkpoints: every_minutes={every_minutes} must be positive")
        self.every_minutes, self._saved_at = every_minutes, time.monotonic()
        self.given, self.every_n_steps, self.keep_last = directory, every_n_steps, keep_last
        self.monitor, self.mode, self.max_failures = monitor, mode, max_failures
        self.directory: Path | None = None
        self.best: tuple[float, str] | None = None  # (score, file name)
        self.saved_step = -1
        self.failures = 0
        self.seconds = 0.0  # spent saving, for the speed metrics
        self._whole: set[str] = set()  # files known to fit their manifests

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
            write_text(directory / ".probe", "")  # a folder that takes no files is an error now, not at the first save
            (directory / ".probe").unlink()
            self._tell_where(Path(trainer.default_root_dir))
            for leftover in directory.glob(".*.tmp-*"):  # of a killed run
                leftover.unlink(missing_ok=True)

    def _tell_where(self, run: Path) -> None:
        """A link in the folder of the run to a directory elsewhere, so that ``last`` and the name of the run lead there."""
        link = run / "checkpoints"
        if self.given is None or link.resolve() == self.directory.resolve() or (link.exists() and not link.is_symlink()):
            return
        try:
            run.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(self.directory.resolve(), target_is_directory=True)
        except OSError as error:  # a file system without links
            rank_zero_warn(f"{link} cannot lead to {self.directory} ({error}); continue with --ckpt_path {self.directory / 'last.ckpt'}")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        last = trainer.global_step == trainer.max_steps  # saved here, where Lightning still counts the epoch as unfinished
        if due or self._minutes_are_over(trainer) or last:
            self.save(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:
            set_aside(self.directory, trainer.global_step, self.best[1] if self.best else None)
            if self.best is not None and not (self.directory / self.best[1]).exists():
                self.best = None  # of another folder, or removed when a better one came: what is found from here on counts
        self.best = distributed.broadcast_object(self.best)

    def _minutes_are_over(self, trainer: pl.Trainer) -> bool:
        if self.every_minutes is None or (distributed.is_distributed() and trainer.global_step % 10):
            return False
        over = trainer.is_global_zero and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        return bool(distributed.host_max(int(over)))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        follows = getattr(getattr(pl_module, "schedule", None), "follows_validation", False)
        if not self._best(trainer) and follows and self.saved_step == trainer.global_step:
            self.save(trainer, again=True)  # a run continued from here does not validate once more

    def _best(self, trainer: pl.Trainer) -> bool:
        """Save where this validation is the best so far; whether it was saved."""
        value = None if self.monitor is None else trainer.callback_metrics.get(self.monitor)
        if self.monitor is not None and value is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ValueError(f"Checkpoints: monitor={self.monitor!r} is not among the metrics: {known}")
        score = math.nan if value is None else float(value)
        if score != score or (self.best is not None and (score >= self.best[0] if self.mode == "min" else score <= self.best[0])):
            return False
        before, self.best = self.best, (score, self._name(trainer))
        if not self.save(trainer, again=True):
            self.best = before
            return False
        if trainer.is_global_zero:
            point(self.directory / "best.ckpt", self.directory / self.best[1])
        return True

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
        self._saved_at = time.monotonic()
        reason = distributed.broadcast_object(no_room(directory) if trainer.is_global_zero else "")
        if not reason:
            trainer.save_checkpoint(path)
            reason = distributed.broadcast_object(self._finish(trainer, path) if trainer.is_global_zero else "")
        self.seconds += time.perf_counter() - began
        if reason:
            self._failed(trainer, reason)
            return False
        self.failures, self.saved_step = 0, trainer.global_step
        return True

    def _failed(self, trainer: pl.Trainer, reason: str) -> None:
        self.failures += 1
        events.note(trainer, "checkpoint_failed", reason=reason, in_a_row=self.failures)
        rank_zero_warn(f"checkpoint not saved ({self.failures} of {self.max_failures} failures allowed): {reason}")
        if self.failures >= self.max_failures:
            remedy = "make room there, or choose another place by --checkpoints.directory, and continue with --ckpt_path last"
            raise CheckpointError(f"{self.failures} saves in a row failed, the last with: {reason}; {remedy}")

    def _finish(self, trainer: pl.Trainer, path: Path) -> str:
        """What is to be done with a file just written, on rank 0; why it does not count, or ''."""
        io = trainer.strategy.checkpoint_io
        if (error := getattr(io, "error", None)) is not None:
            return f"{path.parent}: {error}"
        try:
            if (found := fault(path)) is not None:
                return f"{path}: {found}"
            self._whole.add(path.name)
            point(path.parent / "last.ckpt", path)
            self._prune(path, io)
        except OSError as error:
            return f"{path.parent}: {error}"
        return ""

    def _prune(self, written: Path, io: AtomicCheckpointIO) -> None:
        directory = written.parent
        best = directory / "best.ckpt"
        kept = {written.name, self.best[1] if self.best else "", best.resolve().name if best.exists() else ""}
        whole = 0
        for file in steps_in(directory):
            if whole >= self.keep_last:
                if file.name not in kept:
                    io.remove_checkpoint(file)
            elif file.name in self._whole or fault(file) is None:  # a torn one stays, and does not count
                self._whole.add(file.name)
                whole += 1

    def state_dict(self) -> dict[str, Any]:
        return {"best": None if self.best is None else list(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict.get("best")
        self.best = None if best is None else (float(best[0]), str(best[1]))


def no_room(directory: Path) -> str:
    """Why a save is not even tried: less room than twice the newest checkpoint; '' otherwise."""
    newest = next(iter(steps_in(directory)), None)
    try:
        needed = 2 * newest.stat().st_size if newest is not None else 0
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return str(error)
    return f"{directory}: {free / 2**20:.1f} MiB are free, twice the last checkpoint is {needed / 2**20:.1f}" if free < needed else ""


def _step(file: Path) -> int:
    """The step in a file's name; -1 where it has none."""
    number = file.name.removeprefix("step-").removesuffix(".ckpt")
    return int(number) if number.isdigit() else -1


def set_aside(directory: Path, step: int, best: str | None = None) -> Path | None:
    """Where a run goes on from ``step``, move the checkpoints of later steps out of the way, so that ``last`` never leads back to a
    future that was given up. Nothing is deleted.

    Args:
        directory: the folder of checkpoints.
        step: that the run goes on from; 0: it starts anew.
        best: file name of the best checkpoint as of that step.

    Returns:
        the folder they are in now; None where there are none.
    """
    files = steps_in(directory)
    later = [file for file in files if _step(file) > step]
    if not later:
        return None
    rest = [file for file in files if file not in later]
    targets = {"last.ckpt": rest[0] if rest else None, "best.ckpt": next((file for file in rest if file.name == best), None)}
    for name, target in targets.items():  # first, so that a kill before the files are moved leaves a right ``last``
        link = directory / name
        if link.is_symlink() and _step(link.resolve()) > step:
            if target is not None:
                point(link, target)
            else:
                link.unlink()
    aside = next(place for number in range(1, 10**6) if not (place := directory / f"aside-{number}").exists())
    aside.mkdir()
    for file in later:
        for part in (file, manifest_path(file)):
            if part.exists():
                part.rename(aside / part.name)
    rank_zero_warn(f"the run goes on from step {step}: the checkpoints of later steps ({len(later)}) are set aside in {aside}")
    return aside


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
