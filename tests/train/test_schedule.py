"""Schedules at step 0, w/2, w, T/2 and T, against closed forms and against transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import get_inverse_sqrt_schedule, get_linear_schedule_with_warmup, get_polynomial_decay_schedule_with_warmup

from mmpretrain.train.schedule import Constant, InverseSquareRoot, Milestones, StepScheduler, WarmupCosine, WarmupLinear

W, T = 10, 100
GOLDEN = {  # name -> (schedule, factors at 0, 5, 10, 50, 100)
    "linear": (WarmupLinear(W), (0.0, 0.5, 1.0, 50 / 90, 0.0)),
    "jump": (WarmupLinear(W, style="jump"), (0.0, 0.5, 0.9, 0.5, 0.0)),
    "product": (WarmupLinear(W, style="product"), (0.0, 0.475, 0.9, 0.5, 0.0)),
    "cosine": (WarmupCosine(W), (0.1, 0.6, 1.0, 0.5868240888334652, 0.0)),
    "floor": (WarmupCosine(W, floor=0.1), (0.1, 0.6, 1.0, 0.1 + 0.9 * 0.5868240888334652, 0.1)),
    "constant": (Constant(W), (0.0, 0.5, 1.0, 1.0, 1.0)),
    "inverse square root": (InverseSquareRoot(W), (0.0, 0.5, 1.0, 0.2**0.5, 0.1**0.5)),
    "milestones": (Milestones([0.5, 100], warmup=W), (0.0, 0.5, 1.0, 0.1, 0.01)),
    "share": (WarmupLinear(0.1), (0.0, 0.5, 1.0, 50 / 90, 0.0)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name: str) -> None:
    schedule, expected = GOLDEN[name]
    assert [schedule.factor(step, T) for step in (0, 5, 10, 50, 100)] == pytest.approx(expected, abs=1e-12)


def rates(scheduler: torch.optim.lr_scheduler.LRScheduler, optimizer: torch.optim.Optimizer) -> list[float]:
    found = []
    for _ in range(T):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)


@pytest.mark.parametrize("reference", [get_linear_schedule_with_warmup, get_polynomial_decay_schedule_with_warmup])
def test_linear_is_that_of_transformers(reference) -> None:
    ours, theirs = sgd(), sgd()
    extra = {"lr_end": 0.0, "power": 1} if reference is get_polynomial_decay_schedule_with_warmup else {}
    expected = rates(reference(theirs, W, T, **extra), theirs)
    assert rates(StepScheduler(ours, WarmupLinear(W), T), ours) == pytest.approx(expected, abs=1e-12)


def test_inverse_square_root_is_that_of_transformers() -> None:
    ours, theirs = sgd(), sgd()
    expected = rates(get_inverse_sqrt_schedule(theirs, W), theirs)
    assert rates(StepScheduler(ours, InverseSquareRoot(0.1), T), ours) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="warmup=0"):
        InverseSquareRoot(0)


def test_cosine_is_that_of_open_clip() -> None:
    scheduler = pytest.importorskip("open_clip_train.scheduler")
    ours, theirs = sgd(), sgd()
    step_to = scheduler.cosine_lr(theirs, 0.3, W, T)
    expected = []
    for step in range(T):
        step_to(step)
        expected.append(theirs.param_groups[0]["lr"])
    assert rates(StepScheduler(ours, WarmupCosine(W), T), ours) == pytest.approx(expected, abs=1e-12)


def test_state_is_plain_and_continues() -> None:
    optimizer, other = sgd(), sgd()
    scheduler = StepScheduler(optimizer, WarmupLinear(W), T)
    full = rates(scheduler, optimizer)
    resumed = StepScheduler(other, WarmupLinear(W), T)
    resumed.load_state_dict({"last_epoch": 40})
    assert rates(resumed, other)[: T - 40] == pytest.approx(full[40:], abs=1e-15)
    assert scheduler.state_dict() == {"last_epoch": T}


@pytest.mark.parametrize("warmup", [-1, 1.0, 1.5])
def test_impossible_warmup_is_an_error(warmup: float) -> None:
    with pytest.raises(ValueError, match="warmup"):
        Constant(warmup)


def test_milestones_are_those_of_torch() -> None:
    """Pixel-BERT: a tenth at epochs 25 and 35 of 40, here of 5 steps each."""
    theirs = sgd()
    reference = torch.optim.lr_scheduler.MultiStepLR(theirs, [125, 175])
    shares, steps = (StepScheduler(sgd(), Milestones(at), 200) for at in ([0.625, 0.875], [125, 175]))
    for _ in range(200):
        assert [s.optimizer.param_groups[0]["lr"] for s in (shares, steps)] == pytest.approx([theirs.param_groups[0]["lr"]] * 2, rel=1e-12)
        for one in (theirs, shares.optimizer, steps.optimizer):
            one.step()
        for one in (reference, shares, steps):
            one.step()


@pytest.mark.parametrize("at", [[0.875, 0.625], [0], [1.5], [-3, 5]])
def test_impossible_milestones_are_an_error(at: list[float]) -> None:
    with pytest.raises(ValueError, match=r"schedule\.at"):
        Milestones(at)
