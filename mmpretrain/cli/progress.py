"""The progress bar of training: one bar over the whole run, with the numbers one looks at. A line at times where there is no terminal."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmpretrain.report.markup import duration
from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.trainer import run_steps


class Bar(ProgressBar):
    """Steps of the run, time left, loss, accuracy of each objective, samples/s, share of time waiting for data, memory.

    Args:
        every: seconds between two lines where the output is not a terminal.
        refresh: seconds between two updates of the numbers on a terminal.
    """

    def __init__(self, every: float = 15.0, refresh: float = 0.5) -> None:
        super().__init__()
        self.every, self.refresh = every, refresh
        self.console = Console(stderr=True)
        self._enabled = True
        self._progress: Progress | None = None
        self._train: TaskID | None = None
        self._eval: TaskID | None = None
        self._total: int | None = None
        self._last = self._begin = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        (self._progress.console if self._progress else self.console).print(*args, **kwargs)

    def _open(self) -> None:
        if not self._enabled or self._progress is not None:
            return
        columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
        remaining = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[numbers]}", style="cyan", markup=False))
        terminal = self.console.is_terminal
        self._progress = Progress(*columns, *remaining, console=self.console, disable=not terminal, refresh_per_second=4)
        self._progress.start()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._train = self._eval = None

    # ---------------------------------------------------------------- training
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._enabled:
            return
        self._open()
        self._begin = time.monotonic()
        self._total = run_steps(trainer)
        self._train = self._progress.add_task("train", total=self._total, completed=trainer.global_step, numbers="")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._train is None:
            return
        now, terminal = time.monotonic(), self.console.is_terminal
        if terminal:
            self._progress.update(self._train, completed=trainer.global_step)
        if now - self._last < (self.refresh if terminal else self.every):
            return
        self._last = now
        text = numbers(self.values(trainer))
        if terminal:
            self._progress.update(self._train, numbers=text)
        elif text:
            of = f"/{self._total}" if self._total else ""
            line = f"step {trainer.global_step}{of}, {duration(now - self._begin)}: {text}"
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._close()

    # ---------------------------------------------------------------- evaluation loops
    def _start(self, trainer: pl.Trainer, name: str, total: float) -> None:
        if not self._enabled:
            return
        self._open()
        self._eval = self._progress.add_task(name, total=total if total != float("inf") else None, numbers="")

    def _step(self) -> None:
        if self._eval is not None:
            self._progress.advance(self._eval)

    def _stop(self) -> None:
        if self._eval is not None:
            self._progress.remove_task(self._eval)
            self._eval = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._start(trainer, "check" if trainer.sanity_checking else "validate", sum(batches) if isinstance(batches, list) else batches)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._step()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer, "test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._step()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer, "predict", sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._step()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    @staticmethod
    def values(trainer: pl.Trainer) -> dict[str, float]:
        """The newest value of every metric."""
        return next((callback.latest for callback in trainer.callbacks if isinstance(callback, Metrics)), {})


def numbers(values: dict[str, float]) -> str:
    """The numbers beside the bar, from the metrics of the field's names; those not logged yet are left out."""
    parts = []
    if "train/loss" in values:
        parts.append(f"loss {values['train/loss']:.3f}")
    for name, value in values.items():
        if name.startswith("train/") and name.endswith("/accuracy") and name.count("/") == 2:
            parts.append(f"{name.split('/')[1]} {100 * value:.0f} %")
    for name, text in (("speed/samples_per_s", "{:.0f} samples/s"), ("memory/rss_gib", "{:.1f} GiB")):
        if name in values:
            parts.append(text.format(values[name]))
    if "data/wait_share" in values:
        parts.append(f"waiting {100 * values['data/wait_share']:.0f} %")
    return "  ".join(parts)
