"""Bad samples of a run, over all workers and ranks: counted, written down, and the end of the run where they are too many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

from mmpretrain.data.bad import BadWindow
from mmpretrain.train import distributed, events
from mmpretrain.train.callbacks import forget_after
from mmpretrain.train.events import Journal
from mmpretrain.train.trainer import run_steps
from mmpretrain.types import Batch, Replaced

FILE = "bad_samples.jsonl"
_NAMED = 3  # samples that a warning names


class DataHealth(pl.Callback):
    """Every ``trainer.log_every_n_steps`` steps sums the replaced samples of all ranks, appends them to ``bad_samples.jsonl`` in the folder
    of the run (step, shard, key, reason, error), and lets the data module judge their number (``data.max_bad_fraction``), alike on all
    ranks. Saves, the end of training and an error write down what has come since. A resumed run drops the lines beyond its step. Data
    modules without such a judge are left alone.

    Those that validation replaced have lines with ``"split": "val"`` and are told in a warning and an event ``bad_in_validation``; they are
    not judged.
    """

    def __init__(self) -> None:
        self._judge: BadWindow | None = None
        self._journal: Journal | None = None
        self._steps: list[tuple[int, int, list[Replaced]]] = []  # step, samples of this rank, the replaced among them; not summed yet
        self._validation: list[Replaced] = []  # of this rank
        self._total = 0

    def state_dict(self) -> dict[str, int]:
        self._collect()  # a save: every rank is here, and what is counted goes with it; it is judged after the next step
        return {"total": self._total}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._total = int(state_dict["total"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._judge, self._steps = _judge_of(trainer), []
        if self._judge is None:
            return
        self._judge.total = self._total
        self._last = run_steps(trainer)
        self._device = torch.device("cpu") if pl_module.device.type == "mps" else pl_module.device
        path = Path(trainer.default_root_dir) / FILE
        if trainer.is_global_zero:
            forget_after(path, trainer.global_step)
        self._journal = Journal(path)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._judge is None:
            return
        batches = (batch,) if isinstance(batch, Batch) else batch
        self._steps.append((trainer.global_step, sum(one.size for one in batches), [bad for one in batches for bad in one.replaced]))
        if trainer.global_step % trainer.log_every_n_steps == 0 or trainer.global_step == self._last:
            self._collect()
            self._judge.judge()

    def _collect(self) -> None:
        """Sum, write down and count the steps since the last time. Every rank must call it."""
        if self._judge is None or not self._steps:
            return
        steps, self._steps = self._steps, []
        work_S2 = torch.tensor([[samples, len(bad)] for _, samples, bad in steps], dtype=torch.float64, device=self._device)
        counts = distributed.sum_(work_S2).tolist()
        own = [[tuple(one) for one in bad] for _, _, bad in steps]
        everywhere = distributed.gather_objects(own) if any(bad for _, bad in counts) else []
        for number, ((step, *_), (samples, bad)) in enumerate(zip(steps, counts, strict=True)):
            found = [Replaced(*one) for rank in everywhere for one in rank[number]]
            if distributed.rank() == 0:
                self._write(found, step=step)
            self._total += len(found)
            self._judge.count(int(samples + bad), found)

    def _write(self, found: Iterable[Replaced], **where: Any) -> None:
        for one in found if self._journal is not None else ():
            self._journal.append({**where, **one._asdict()})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._collect()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Other ranks may be elsewhere, so each writes down its own."""
        for step, _, bad in self._steps:
            self._write(bad, step=step)
        self._steps = []

    # ---------------------------------------------------------------- validation
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation = []

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        if isinstance(batch, Batch):
            self._validation += batch.replaced

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or _judge_of(trainer) is None:
            return
        found = [Replaced(*one) for rank in distributed.gather_objects([tuple(one) for one in self._validation]) for one in rank]
        if not found:
            return
        if trainer.is_global_zero:
            self._write(found, step=trainer.global_step, split="val")
        if trainer.state.fn == "fit":
            events.note(trainer, "bad_in_validation", samples=len(found))
        rank_zero_warn(f"validation: {_said(found)}: its numbers are not quite those of the whole set")


def _judge_of(trainer: pl.Trainer) -> BadWindow | None:
    return getattr(getattr(trainer, "datamodule", None), "bad", None)


def _said(found: Sequence[Replaced]) -> str:
    shown = "; ".join(one.error for one in found[:_NAMED])
    return f"{len(found)} samples cannot be read and were replaced by others ({shown}{'; ...' if len(found) > _NAMED else ''})"
