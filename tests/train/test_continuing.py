"""What a continued run must not lose, and what may not be continued at all."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from train.fakes import FakeData
from train.runs import build, quiet, trainer

from mmpretrain.train import atomic
from mmpretrain.train.atomic import CheckpointError
from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.signals import SIGNALS, Preemption


def fit(folder: Path, steps: int, log_every: int = 4, **flags: Any) -> pl.Trainer:
    quiet()
    callbacks = [Metrics(), Checkpoints(every_n_steps=2), *flags.pop("callbacks", [])]
    fitter = trainer(steps, callbacks, default_root_dir=folder, enable_checkpointing=True, log_every_n_steps=log_every, **flags)
    fitter.fit(build(), datamodule=FakeData(steps_per_epoch=20), ckpt_path="last")
    return fitter


def lines(folder: Path) -> dict[int, dict[str, float]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry for entry in entries if "train/loss" in entry}


def test_sums_and_counts_of_an_interval_are_in_the_checkpoint(tmp_path: Path) -> None:
    class Cut(pl.Callback):
        def on_train_batch_end(self, fitter: pl.Trainer, *_: Any) -> None:
            if fitter.global_step == 7:
                raise RuntimeError("cut")

    fit(tmp_path / "whole", 8)
    with pytest.raises(RuntimeError, match="cut"):
        fit(tmp_path / "parts", 8, callbacks=[Cut()])
    fit(tmp_path / "parts", 8)  # from step 6
    whole, parts = lines(tmp_path / "whole"), lines(tmp_path / "parts")
    assert sorted(parts) == sorted(whole) == [4, 8]
    for name in ("train/loss", "train/mlm/loss", "train/mlm/accuracy", "train/match/loss"):
        assert parts[8][name] == whole[8][name]
    state = atomic.load(tmp_path / "parts" / "checkpoints" / "step-00000006.ckpt")
    assert state["callbacks"]["Metrics"]["samples"] == 16 and state["meter"]["train/loss"][1] == 2


@pytest.mark.parametrize("gone", ["optimizer_states", "lr_schedulers"])
def test_weights_alone_are_not_continued_but_evaluated(tmp_path: Path, gone: str) -> None:
    fit(tmp_path, 2)
    (path,) = atomic.steps_in(tmp_path / "checkpoints")
    content = atomic.load(path)
    del content[gone]
    atomic.save(content, path)
    with pytest.raises(CheckpointError, match="weights alone"):
        fit(tmp_path, 4)
    found = trainer(4, default_root_dir=tmp_path).validate(build(), datamodule=FakeData(), ckpt_path=str(path), verbose=False)
    assert "val/loss" in found[0]


class Dies(pl.Callback):
    def on_train_batch_start(self, *_: Any) -> None:
        raise RuntimeError("an error in a step")


@pytest.mark.parametrize("dies", [False, True], ids=["ends", "dies"])
def test_handlers_of_signals_are_taken_back(tmp_path: Path, dies: bool) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    callbacks: list[pl.Callback] = [Preemption(), Dies()] if dies else [Preemption()]
    if dies:
        with pytest.raises(RuntimeError, match="in a step"):
            fit(tmp_path, 2, callbacks=callbacks)
    else:
        fit(tmp_path, 2, callbacks=callbacks)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
