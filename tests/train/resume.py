"""A run with checkpoints, as a script: ``resume.py DIR STEPS [SECONDS_PER_STEP]``. It continues from ``last`` if there is one."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from train.fakes import FakeData
from train.runs import build, quiet, trainer

from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.signals import Preemption


class Slow(pl.Callback):
    """Gives the test time to kill."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(self.seconds)


def go(
    folder: Path, steps: int, seconds: float = 0.0, ckpt_path: str | None = "last", optimizer: dict[str, Any] | None = None, **flags: Any
) -> pl.Trainer:
    """Fit to ``steps`` with dropout and EMA, saving every second step; parameters and EMA go to ``end.pt``. ``optimizer``: its options."""
    quiet()
    callbacks = [Metrics(), Slow(seconds), Preemption(every=1), Checkpoints(every_n_steps=2, keep_last=2), *flags.pop("callbacks", [])]
    fitter = trainer(steps, callbacks, default_root_dir=folder, enable_checkpointing=True, log_every_n_steps=1, **flags)
    module = build(dropout=0.1, ema_decay=0.9, optimizer=optimizer)
    fitter.fit(module, datamodule=FakeData(steps_per_epoch=5), ckpt_path=ckpt_path)
    torch.save({"parameters": module.root.state_dict(), "ema": module.ema.state()}, folder / "end.pt")
    return fitter


if __name__ == "__main__":
    go(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
