"""The rate halves where the loss rests, every rank alike and after a resumption as without; the average every so many steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train.cases import execute
from train.fakes import FakeData
from train.runs import build, quiet, trainer

from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.ema import Ema
from mmpretrain.train.plateau import Plateau
from mmpretrain.train.schedule import StepScheduler

WARMUP, TOTAL = 4, 100


def scheduler(**rules) -> StepScheduler:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    return StepScheduler(optimizer, Plateau(**{"warmup": WARMUP, "window": 2, "patience": 2, "threshold": 0.01, **rules}), TOTAL)


def rates(made: StepScheduler, losses: list[float]) -> list[float]:
    """The rate of each step whose loss is given."""
    found = []
    for loss in losses:
        found.append(made.optimizer.param_groups[0]["lr"])
        made.optimizer.step()
        value = torch.tensor(loss)
        made.observe(value, torch.isfinite(value))
        made.step()
    return found


def test_golden_points() -> None:
    """Warm-up over steps 0 to 3; looks end with steps 5, 7, 9, ...: the best at 5, two that are not better end at 9, two more at 13."""
    found = rates(scheduler(), [9.0] * 4 + [1.0] * 16)
    assert found == pytest.approx([0.0, 0.2, 0.4, 0.6] + [0.8] * 6 + [0.4] * 4 + [0.2] * 4 + [0.1] * 2)


def test_a_falling_loss_keeps_the_rate_and_five_drops_are_the_last() -> None:
    assert set(rates(scheduler(warmup=0), [0.9**i for i in range(40)])) == {0.8}
    made = scheduler(warmup=0, window=1, patience=1)
    assert rates(made, [1.0] * 20)[-1] == pytest.approx(0.8 / 32) and made.schedule.drops == 5


def test_a_look_is_a_mean_and_steps_that_are_not_finite_leave_no_trace() -> None:
    made = scheduler(warmup=0)
    rates(made, [3.0, 1.0, float("nan"), 1.5])
    assert made.schedule.best == pytest.approx(1.5)  # 2.0 first, then 1.5 alone
    rates(made, [float("nan")] * 2)
    assert made.schedule.waited == 0


def test_a_better_loss_must_be_better_by_the_threshold() -> None:
    made = scheduler(warmup=0, window=1, patience=3)
    rates(made, [1.0, 0.995, 0.985])
    assert (made.schedule.best, made.schedule.waited) == (pytest.approx(0.985), 0)
    rates(made, [0.98])
    assert made.schedule.waited == 1
    falling = scheduler(warmup=0, window=1)
    rates(falling, [-1.0, -1.5, -2.0])  # likelihoods of continuous values may have such losses
    assert (falling.schedule.best, falling.schedule.waited) == (-2.0, 0)


def test_the_state_is_plain_and_continues_within_a_look() -> None:
    losses = [1.0] * 17
    whole = rates(scheduler(), losses)
    first = scheduler()
    rates(first, losses[:7])
    state = first.state_dict()
    assert state == {"last_epoch": 7, "schedule": {"drops": 0, "best": 1.0, "waited": 0, "steps": 1, "seen": {"loss": [1.0, 1.0]}}}
    second = scheduler()
    second.load_state_dict(state)
    assert rates(second, losses[7:]) == whole[7:]
    assert rates(scheduler(), losses[:3]) == whole[:3]  # before the first look there is no best
    fresh = scheduler()
    fresh.load_state_dict(scheduler().state_dict())
    assert rates(fresh, losses) == whole


def test_validations_are_looks() -> None:
    made = scheduler(reads="val", warmup=0, patience=1)
    assert set(rates(made, [1.0] * 10)) == {0.8}  # the loss of training is not looked at
    for loss, rate in ((2.0, 0.8), (1.0, 0.8), (1.0, 0.4), (float("nan"), 0.4), (1.1, 0.2)):
        made.validated(loss)
        assert made.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    train = scheduler(warmup=0, patience=1)
    train.validated(1.0)
    train.validated(1.0)
    assert train.schedule.drops == 0


@pytest.mark.parametrize("wrong", [{"drop": 1.0}, {"times": -1}, {"window": 0}, {"patience": 0}, {"threshold": 1.0}, {"reads": "test"}])
def test_numbers_out_of_range_are_errors(wrong) -> None:
    with pytest.raises(ValueError, match="schedule"):
        Plateau(**wrong)


def go(folder: Path, steps: int, reads: str) -> dict[str, torch.Tensor]:
    quiet()
    flags = (
        {"val_check_interval": 3, "check_val_every_n_epoch": None, "num_sanity_val_steps": 1}
        if reads == "val"
        else {"limit_val_batches": 0}
    )
    fitter = trainer(steps, [Checkpoints(every_n_steps=1)], default_root_dir=folder, enable_checkpointing=True, **flags)
    module = build(ema_decay=0.5, ema_every=3)
    module.schedule = Plateau(warmup=2, window=2, patience=1, threshold=0.5, reads=reads)
    fitter.fit(module, datamodule=FakeData(steps_per_epoch=5), ckpt_path="last")
    drops = {"drops": torch.tensor(module.schedule.drops), "lr": torch.tensor(fitter.optimizers[0].param_groups[0]["lr"])}
    average = {f"ema.{name}": value for name, value in module.ema.state().items()}
    return {**module.root.state_dict(), **average, **drops}


@pytest.mark.parametrize(("reads", "stop"), [("train", 5), ("val", 6), ("val", 7)])
def test_a_resumed_run_is_an_unbroken_one(tmp_path: Path, reads: str, stop: int) -> None:
    """In the middle of a look, at its end, and where a validation is due."""
    whole = go(tmp_path / "whole", 11, reads)
    go(tmp_path / "parts", stop, reads)
    parts = go(tmp_path / "parts", 11, reads)
    assert whole["drops"] > 0
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_runs_without_ranks_drop_too() -> None:
    module, _ = execute("plateau")  # with two: tests/train/test_parallel.py
    assert module.schedule.drops == 3


def test_the_average_is_taken_every_so_many_steps() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    average = Ema(module, 0.75, every=3)
    expected = module.weight.item()
    for done in range(1, 10):
        with torch.no_grad():
            module.weight.add_(1)
        average.update(done)
        if done % 3 == 0:
            expected = 0.75 * expected + 0.25 * module.weight.item()
        assert average.average["weight"].item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="ema_every"):
        Ema(module, 0.9, every=0)
