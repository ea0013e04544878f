"""Bad samples of a run, over all workers and ranks: counted, written down, and the end of the run where they are too many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from mmpretrain.train import distributed
from mmpretrain.train.events import Journal
from mmpretrain.train.trainer import run_steps
from mmpretrain.types import Batch, Replaced

FILE = "bad_samples.jsonl"


class DataHealth(pl.Callback):
    """Every ``trainer.log_every_n_steps`` steps sums the replaced samples of all ranks, appends them to ``bad_samples.jsonl`` in the folder
    of the run (step, shard, key, reason, error), and lets the data module judge their number (``data.max_bad_fraction``), alike on all
    ranks. Data modules without such a judge are left alone.
    """

    def __init__(self) -> None:
        self._samples = 0
        self._replaced: list[Replaced] = []
        self._total = 0

    def state_dict(self) -> dict[str, int]:
        return {"total": self._total}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._total = int(state_dict["total"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._judge = getattr(getattr(trainer, "datamodule", None), "bad", None)
        self._last = run_steps(trainer)
        self._journal = Journal(Path(trainer.default_root_dir) / FILE)
        self._device = torch.device("cpu") if pl_module.device.type == "mps" else pl_module.device
        if self._judge is not None:
            self._judge.total = self._total

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._judge is None:
            return
        for one in (batch,) if isinstance(batch, Batch) else batch:
            self._samples += one.size
            self._replaced += one.replaced
        if trainer.global_step % trainer.log_every_n_steps == 0 or trainer.global_step == self._last:
            self._sum(trainer)

    def _sum(self, trainer: pl.Trainer) -> None:
        work = torch.tensor([self._samples, len(self._replaced)], dtype=torch.float64, device=self._device)
        samples, bad = distributed.sum_(work).tolist()
        everywhere = distributed.gather_objects([tuple(one) for one in self._replaced]) if bad else []
        self._samples, self._replaced = 0, []
        found = [Replaced(*one) for rank in everywhere for one in rank]
        if trainer.is_global_zero:
            for one in found:
                self._journal.append({"step": trainer.global_step, **one._asdict()})
        self._total += len(found)
        self._judge.add(int(samples + bad), found)
