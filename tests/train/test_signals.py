"""A signal at any moment of a run: one checkpoint, the documented exit code, and a continuation equal to the last bit."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from train.fakes import FakeData
from train.runs import build, quiet, trainer
from train.spawn import environment

from mmpretrain.data import working
from mmpretrain.train import atomic
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.signals import SIGNALS, Preemption

STEP = 3


class Told(pl.Callback):
    """Sends a signal to this process at one moment of the step after ``STEP``."""

    def __init__(self, moment: str, number: int) -> None:
        self.moment, self.number, self.sent = moment, number, False

    def _at(self, moment: str, fitter: pl.Trainer) -> None:
        if moment == self.moment and fitter.global_step >= STEP and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, fitter: pl.Trainer, *_: Any) -> None:
        self._at("forward", fitter)

    def on_before_backward(self, fitter: pl.Trainer, *_: Any) -> None:
        self._at("backward", fitter)

    def on_before_optimizer_step(self, fitter: pl.Trainer, *_: Any) -> None:
        self._at("optimiser", fitter)

    def on_validation_batch_start(self, fitter: pl.Trainer, *_: Any) -> None:
        self._at("validation", fitter)

    def on_save_checkpoint(self, fitter: pl.Trainer, *_: Any) -> None:
        self._at("save", fitter)


def fit(folder: Path, *callbacks: pl.Callback, every: int = 4) -> dict[str, torch.Tensor]:
    quiet()
    keeper = Checkpoints(every_n_steps=every, keep_last=10)
    fitter = trainer(8, [*callbacks, Preemption(), keeper], default_root_dir=folder, enable_checkpointing=True, val_check_interval=4)
    module = build(dropout=0.1)
    fitter.fit(module, datamodule=FakeData(steps_per_epoch=8), ckpt_path="last")
    return module.root.state_dict()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return fit(tmp_path_factory.mktemp("unbroken"))


MOMENTS = ["forward", "backward", "optimiser", "save", "validation", "validation unsaved"]


@pytest.mark.fault(47)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment(tmp_path: Path, unbroken: dict[str, torch.Tensor], moment: str) -> None:
    """Every one of them leaves after step 4, that of the validation and of the save too, which belong to it."""
    number = SIGNALS[len(moment) % 3]
    every = 100 if "unsaved" in moment else 4
    with pytest.raises(SystemExit) as left:
        fit(tmp_path, Told(moment.split()[0], number), every=every)
    assert left.value.code == 128 + number
    assert [path.name for path in atomic.steps_in(tmp_path / "checkpoints")] == ["step-00000004.ckpt"]
    event = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert event["event"] == "signal" and event["saved"] and event["step"] == 4
    resumed = fit(tmp_path)
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)


def slurm(folder: Path, code: int) -> dict[str, str]:
    """An environment of a job, with a ``scontrol`` that notes what it is asked."""
    program = folder / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\nexit {code}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}


@pytest.mark.fault(47)
@pytest.mark.parametrize(("refused", "number"), [(0, signal.SIGUSR1), (1, signal.SIGUSR1), (0, signal.SIGTERM)])
def test_slurm_takes_the_job_back_after_sigusr1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int, number: int) -> None:
    for name, value in slurm(tmp_path, refused).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as left:
        fit(tmp_path, Told("forward", number))
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert asked == ("requeue 4711\n" if number == signal.SIGUSR1 else "")
    assert left.value.code == (0 if number == signal.SIGUSR1 and not refused else 128 + number)


SECOND = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import lightning.pytorch as pl
from train.test_signals import fit

class Twice(pl.Callback):
    def on_train_batch_start(self, fitter, *_):
        if fitter.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

fit(Path({folder!r}), Twice())
"""


@pytest.mark.slow
@pytest.mark.fault(47)
def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    script = SECOND.format(tests=str(Path(__file__).resolve().parents[1]), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], env=environment(), timeout=200, check=False, capture_output=True)
    assert done.returncode == -signal.SIGINT  # 130 for a shell
    assert not list((tmp_path / "checkpoints").glob("*.ckpt"))


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    @working.item
    def __getitem__(self, index: int) -> int:
        working.note(f"number {index}")
        if index == 1:  # as a terminal and a scheduler do: to every process of the job; this one is the worker
            for number in SIGNALS:
                os.kill(os.getpid(), number)
        return index


def test_workers_leave_signals_to_the_run() -> None:
    board = working.Board(1)
    loader = working.Loader(Numbers(), batch_size=None, num_workers=1, worker_init_fn=board)
    assert list(loader) == [0, 1, 2]
    (doing,) = board.read()
    assert doing.pid > 0 and doing.at == ""
    iterator = iter(loader)
    assert next(iterator) == 0
    (process,) = iterator._workers
    for _ in range(40):  # the training process may; again, because a signal that meets a pending one of the same number is lost
        process.terminate()
        process.join(0.5)
        if process.exitcode is not None:
            break
    assert process.exitcode == 0
