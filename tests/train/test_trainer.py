"""The Trainer's flags: what they mean for the length of a run, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from train.fakes import FakeData
from train.runs import build, trainer

from mmpretrain.train.schedule import WarmupLinear
from mmpretrain.train.trainer import Trainer, run_steps


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ({"max_steps": 7, "max_epochs": -1}, 7),
        ({"max_steps": -1, "max_epochs": 2}, 10),
        ({"max_steps": 7, "max_epochs": 1}, 5),
        ({"max_steps": 7, "max_epochs": 3, "limit_train_batches": 2}, 6),
        ({"max_steps": -1, "max_epochs": 2, "limit_train_batches": 0.5}, 4),
        ({"max_steps": -1, "max_epochs": -1}, None),
    ],
)
def test_the_schedule_spans_the_run(flags: dict[str, Any], steps: int | None) -> None:
    fitter, module = trainer(**{"steps": flags.pop("max_steps"), **flags}), build()
    fitter.datamodule, module._trainer = FakeData(), fitter
    fitter.datamodule.steps_per_epoch = 5
    assert run_steps(fitter) == steps
    module.schedule = WarmupLinear()
    if steps is None:
        with pytest.raises(ValueError, match="the run has no end"):
            module.total_steps()
    else:
        assert module.total_steps() == steps
    module.schedule = WarmupLinear(total=100)
    assert module.total_steps() == 100


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches=0"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val=-1.0"),
        ({"use_distributed_sampler": True}, "must stay false"),
        ({"overfit_batches": 1}, "overfit_batches=1 must stay 0"),
        ({"log_every_n_steps": 0}, "log_every_n_steps=0 must be at least 1"),
    ],
)
def test_flags_out_of_range(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Trainer(**flags)
