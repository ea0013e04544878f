"""What a run writes down: metrics, environment, result."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from train.fakes import LENGTH, FakeData, FakeMatch, States
from train.resume import go
from train.runs import build, quiet, trainer

from mmpretrain.train import places, run_dir
from mmpretrain.train.callbacks import Metrics, forget_after
from mmpretrain.train.schedule import WarmupLinear
from mmpretrain.types import Batch, Score


class Broken(DummyLogger):
    """A tracker whose server is gone."""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")


def test_names_and_values_of_metrics(tmp_path: Path) -> None:
    go(tmp_path, 5)
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    training = [entry for entry in entries if "train/loss" in entry]
    assert [entry["step"] for entry in training] == [1, 2, 3, 4, 5]
    names = {"train/loss", "train/mlm/loss", "train/mlm/accuracy", "train/match/loss", "train/grad_norm", "train/lr"}
    names |= {"speed/samples_per_s", "speed/tokens_per_s", "data/wait_share", "memory/rss_gib"}
    assert names <= training[0].keys()
    rates = [3e-3 * WarmupLinear(warmup=2, total=10).factor(step, 10) for step in range(5)]
    assert [entry["train/lr"] for entry in training] == pytest.approx(rates)  # those that the steps were taken with
    for entry in training:
        total = entry["train/mlm/loss"] + 0.5 * entry["train/match/loss"]
        assert entry["train/loss"] == pytest.approx(total, rel=1e-5)
        assert entry["speed/tokens_per_s"] == pytest.approx(LENGTH * entry["speed/samples_per_s"])
        assert 0 <= entry["data/wait_share"] <= 1
    validated = next(entry for entry in entries if "val/mlm/loss" in entry)
    assert validated["val/loss"] == pytest.approx(validated["val/mlm/loss"] + 0.5 * validated["val/match/loss"], rel=1e-5)


class EverySecond(pl.Callback):
    """Measures at every second validation, as ``Measure(every=2)`` does."""

    def __init__(self) -> None:
        self.seen = 0

    def on_validation_epoch_end(self, fitter: pl.Trainer, module: pl.LightningModule) -> None:
        self.seen += 1
        if self.seen % 2:
            module.log("val/measured", float(self.seen))


def test_a_validation_writes_what_it_measured_itself(tmp_path: Path) -> None:
    quiet()
    flags = {"val_check_interval": 1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    fitter = trainer(4, [Metrics(), EverySecond()], default_root_dir=tmp_path, **flags)
    fitter.fit(build(), datamodule=FakeData())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line.get("val/measured") for line in lines if "val/loss" in line} == {1: 1.0, 2: None, 3: 3.0, 4: None}


class Rests(FakeMatch):
    """Has a term at one step alone, or at none."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__(view="match")
        self.at, self.calls = at, 0

    def count(self, batch: Batch) -> Tensor:
        return super().count(batch) * float(self.calls == self.at)

    def forward(self, hidden: States, batch: Batch) -> Score:
        score = super().forward(hidden, batch)
        self.calls += self.training
        return score._replace(sum=score.sum * score.count)


@pytest.mark.parametrize(("at", "told"), [(None, 1), (0, 0), (2, 0)])
def test_an_objective_that_never_has_a_term_is_told_once(tmp_path: Path, at: int | None, told: int) -> None:
    quiet()
    module = build()
    module.root.objectives["match"] = Rests(at)
    fitter = trainer(4, [Metrics()], default_root_dir=tmp_path, log_every_n_steps=1, val_check_interval=4)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fitter.fit(module, datamodule=FakeData())
    assert sum("match: no term in any step so far" in str(one.message) for one in found) == told


@pytest.mark.fault(54)
def test_a_broken_tracker_is_left_out(tmp_path: Path) -> None:
    quiet()
    fitter = trainer(3, [Metrics()], default_root_dir=tmp_path, logger=Broken(), log_every_n_steps=1, limit_val_batches=0)
    fitter.fit(build(), datamodule=FakeData())
    assert fitter.global_step == 3 and len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_lines_after_the_checkpoint_and_torn_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "tr')
    forget_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(run_dir.VARIABLE, raising=False)
    first = run_dir.create(tmp_path, "my recipe", now=0.0)
    assert first.name.startswith("my-recipe-19")
    assert run_dir.create(tmp_path, "other") == first.resolve(), "processes started by a launcher share the folder"
    monkeypatch.delenv(run_dir.VARIABLE)
    second = run_dir.create(tmp_path, "my recipe", now=0.0)
    monkeypatch.delenv(run_dir.VARIABLE)
    assert second != first and places.latest(tmp_path, "my-recipe") is None
    for folder in (first, second):
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "step-00000001.ckpt").touch()
    assert places.latest(tmp_path, "my-recipe") == second and places.latest(tmp_path, "clip") is None
    run_dir.describe(first, "a: 1\n")
    assert json.loads((first / "environment.json").read_text())["versions"]["torch"]
    run_dir.write_result(first, [{"name": "val/itm/accuracy", "value": 0.5, "chance": 0.5}], checkpoint="x.ckpt")
    assert json.loads((first / "result.json").read_text())["rows"][0]["chance"] == 0.5
    with pytest.raises(ValueError, match="name and value"):
        run_dir.write_result(first, [{"value": 1}])
