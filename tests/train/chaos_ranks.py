"""The trainings that ``chaos.py`` kills: two forked ranks that say which step they are at and when a save begins."""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from train import systems
from train.fakes import FakeData
from train.runs import build, quiet, trainer
from train.spawn import free_port

from mmpretrain.train import atomic
from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.module import Pretrain
from mmpretrain.train.signals import Preemption

STEPS, WORLD = 24, 2
BALLAST = 1_000_000  # float32 numbers in the state, so that a save takes about as long as the steps between two


class Training(NamedTuple):
    """What is trained, and where the temporary files of its ranks go."""

    tmpdir: Path
    shards: Path | None = None  # ViLT on these, read by a worker of each rank; None: a small system whose samples are made

    def module(self) -> Pretrain:
        return build(dropout=0.1, ema_decay=0.9) if self.shards is None else systems.build("vilt", dropout=0.1, ema_decay=0.9)

    def data(self) -> pl.LightningDataModule:
        if self.shards is None:
            return FakeData(steps_per_epoch=7)
        found = systems.data(self.shards, "vilt")
        found.workers = 1
        return found


class Signs:
    """What rank 0 tells the killer: the steps and the saves that it has begun in this start, and how long the last of each took."""

    LAYOUT = struct.Struct("qqdd")

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, self.LAYOUT.size)

    def read(self) -> dict[str, Any]:
        return dict(zip(("steps", "saves", "step_s", "save_s"), self.LAYOUT.unpack_from(self.memory), strict=True))

    def write(self, **changes: float) -> None:
        self.LAYOUT.pack_into(self.memory, 0, *(self.read() | changes).values())


class Tells(pl.Callback):
    """Steps, with the number that they have in the run."""

    def __init__(self, signs: Signs) -> None:
        self.signs, self.before = signs, time.perf_counter()

    def on_train_batch_start(self, fitter: pl.Trainer, *_: Any) -> None:
        if fitter.is_global_zero:
            now = time.perf_counter()
            self.signs.write(steps=fitter.global_step + 1, step_s=now - self.before)
            self.before = now


def telling(signs: Signs) -> Any:
    """``atomic.save`` that says when it begins and how long it took."""
    save = atomic.save

    def told(checkpoint: Any, path: Path) -> None:
        signs.write(saves=signs.read()["saves"] + 1)
        began = time.perf_counter()
        save(checkpoint, path)
        signs.write(save_s=time.perf_counter() - began)

    return told


def fit(training: Training, folder: Path, signs: Signs) -> None:
    """The training of one rank, from ``last``."""
    quiet()
    module = training.module()
    module.root.model.register_buffer("ballast", torch.arange(float(BALLAST)))
    callbacks = [Metrics(), Tells(signs), Preemption(), Checkpoints(every_n_steps=2, keep_last=2)]
    layout = {"strategy": "ddp", "devices": WORLD, "enable_checkpointing": True, "log_every_n_steps": 3}
    fitter = trainer(STEPS, callbacks, default_root_dir=folder, **layout)
    fitter.fit(module, datamodule=training.data(), ckpt_path="last")
    if fitter.is_global_zero:
        end = {"parameters": module.root.state_dict(), "ema": module.ema.state()}
        torch.save(end, folder / "end.tmp")
        os.replace(folder / "end.tmp", folder / "end.pt")


def rank(number: int, port: int, training: Training, folder: Path, signs: Signs) -> int:
    """Fork a rank; its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        log = os.open(folder / f"rank-{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        places = {"RANK": number, "LOCAL_RANK": number, "GROUP_RANK": 0, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD}
        os.environ |= {name: str(value) for name, value in (places | {"MASTER_PORT": port}).items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "chaos", "TORCHELASTIC_RESTART_COUNT": "0"}
        os.environ["TMPDIR"] = str(training.tmpdir)
        atomic.save = telling(signs)
        fit(training, folder, signs)
        os._exit(0)
    except BaseException:  # noqa: BLE001 - whatever it is, it is in the log
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def start(training: Training, folder: Path) -> tuple[list[int], Signs]:
    """Fork the ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    signs, port = Signs(), free_port()
    return [rank(number, port, training, folder, signs) for number in range(WORLD)], signs
