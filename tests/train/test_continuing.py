"""What a continued run must not lose, and what may not be continued at all."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.child import child
from train.fakes import FakeData
from train.runs import build, full, quiet, trainer

from mmpretrain.train import atomic
from mmpretrain.train.atomic import CheckpointError
from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.checkpoint import Checkpoints, set_aside
from mmpretrain.train.signals import SIGNALS, Preemption


def fit(folder: Path, steps: int, log_every: int = 4, ckpt_path: str | None = "last", **flags: Any) -> pl.Trainer:
    quiet()
    callbacks = [Metrics(), Checkpoints(every_n_steps=2), *flags.pop("callbacks", [])]
    fitter = trainer(steps, callbacks, default_root_dir=folder, enable_checkpointing=True, log_every_n_steps=log_every, **flags)
    fitter.fit(build(), datamodule=FakeData(steps_per_epoch=20), ckpt_path=ckpt_path)
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


class Apart(pl.Callback):
    """How far the average is from the parameters after the first step."""

    def on_train_batch_end(self, fitter: pl.Trainer, module: Any, *_: Any) -> None:
        average, parameters = module.ema.state(), dict(module.root.named_parameters())
        self.apart = max(float((full(parameters[name]) - value).abs().max()) for name, value in average.items())
        fitter.should_stop = True


@pytest.mark.parametrize("strategy", ["auto", "fsdp2"])
def test_an_average_that_is_new_starts_at_the_weights_of_the_checkpoint(tmp_path: Path, strategy: str) -> None:
    def runs() -> None:
        fit(tmp_path, 6, strategy=strategy)
        apart, rate = Apart(), 3e-3
        fitter = trainer(7, [apart], default_root_dir=tmp_path, enable_checkpointing=True, strategy=strategy)
        fitter.fit(build(ema_decay=0.999), datamodule=FakeData(steps_per_epoch=20), ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
        assert 0 < apart.apart < 2 * rate  # one step of Adam, not those before

    ended = child(runs)
    assert ended.code == 0, ended.output[-2000:]


def test_a_run_with_nothing_left_has_the_average_of_its_checkpoint(tmp_path: Path) -> None:
    averages = []
    for _ in range(2):
        module = build(ema_decay=0.9)
        fitter = trainer(2, [Checkpoints(every_n_steps=2)], default_root_dir=tmp_path, enable_checkpointing=True)
        fitter.fit(module, datamodule=FakeData(steps_per_epoch=20), ckpt_path="last")
        averages.append(module.ema.state())
    assert all(torch.equal(averages[0][name], value) for name, value in averages[1].items())


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


def names(folder: Path) -> list[str]:
    return [path.name for path in atomic.steps_in(folder)]


def test_going_on_from_an_older_step_gives_up_the_later_ones(tmp_path: Path) -> None:
    """Three whole checkpoints of later steps neither push out the new save nor come back as ``last``."""
    folder = tmp_path / "checkpoints"
    fit(tmp_path, 8)
    older = atomic.steps_in(folder)[-1]
    kept = tmp_path / "kept.ckpt"
    kept.write_bytes(older.read_bytes())
    fit(tmp_path, 14)
    assert names(folder) == ["step-00000014.ckpt", "step-00000012.ckpt", "step-00000010.ckpt"]
    fit(tmp_path, 6, ckpt_path=str(kept))
    assert names(folder) == ["step-00000006.ckpt"] and (folder / "last.ckpt").resolve().name == "step-00000006.ckpt"
    assert names(folder / "aside-1") == ["step-00000014.ckpt", "step-00000012.ckpt", "step-00000010.ckpt"]
    assert all(atomic.fault(path) is None for path in atomic.steps_in(folder / "aside-1"))
    assert fit(tmp_path, 8).global_step == 8  # from last
    assert names(folder) == ["step-00000008.ckpt", "step-00000006.ckpt"] and len(list(folder.glob("aside-*"))) == 1


def test_until_its_first_save_last_is_the_step_it_goes_on_from(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    fit(tmp_path, 8)
    with pytest.raises(RuntimeError, match="in a step"):
        fit(tmp_path, 8, callbacks=[Dies()], ckpt_path=str(folder / "step-00000004.ckpt"))
    assert atomic.choose(folder / "last.ckpt").name == "step-00000004.ckpt" and names(folder) == ["step-00000004.ckpt"]
    with pytest.raises(RuntimeError, match="in a step"):
        fit(tmp_path, 8, callbacks=[Dies()], ckpt_path=None)  # anew, in the same folder
    assert names(folder) == [] and not (folder / "last.ckpt").is_symlink() and names(folder / "aside-2") == ["step-00000004.ckpt"]


@pytest.mark.filterwarnings("ignore:the run goes on")
def test_the_best_of_a_given_up_future_is_no_longer_the_best(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (2, 4, 6):
        atomic.save({"global_step": step}, folder / f"step-{step:08d}.ckpt")
    for link, step in (("last", 6), ("best", 6)):
        atomic.point(folder / f"{link}.ckpt", folder / f"step-{step:08d}.ckpt")
    assert set_aside(folder, 6) is None
    with pytest.warns(UserWarning, match=r"goes on from step 4: .* later steps \(1\) are set aside in .*aside-1"):
        assert set_aside(folder, 4, best="step-00000002.ckpt") == folder / "aside-1"
    assert (folder / "last.ckpt").resolve().name == "step-00000004.ckpt" and (folder / "best.ckpt").resolve().name == "step-00000002.ckpt"
    assert set_aside(folder, 2, best="step-00000001.ckpt") == folder / "aside-2"
    assert (folder / "last.ckpt").resolve() == (folder / "best.ckpt").resolve() == folder / "step-00000002.ckpt"
    assert set_aside(folder, 1) is not None and not (folder / "best.ckpt").is_symlink()


def test_a_file_just_written_is_never_pruned(tmp_path: Path) -> None:
    keeper, io = Checkpoints(keep_last=2), atomic.AtomicCheckpointIO()
    paths = [tmp_path / f"step-{step:08d}.ckpt" for step in (1, 7, 8, 9)]
    for path in paths:
        atomic.save({"global_step": 1}, path)
    keeper._prune(paths[0], io)
    assert [path.exists() for path in paths] == [True, False, True, True]


class Dies(pl.Callback):
    def on_train_batch_start(self, *_: Any) -> None:
        raise RuntimeError("an error in a step")


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(fit(tmp_path, 2, callbacks=[Preemption()]).global_step))
    thread.start()
    thread.join()
    assert found == [2]


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
