"""The Trainer's flags: what they mean for the length of a run, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.region_batches import region_sample_batch
from train.fakes import FakeData
from train.runs import build, trainer

from mmpretrain.train.schedule import WarmupLinear
from mmpretrain.train.trainer import Trainer, run_steps
from mmpretrain.types import Batch


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


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_boxes_are_whole_pixels_in_half_precision(precision: str) -> None:
    given = region_sample_batch((2, 3))
    for batch in (given, given._replace(regions=None)):
        (made,) = trainer(precision=precision).precision_plugin.convert_input((batch,))
        assert isinstance(made, Batch) and made.text == batch.text
        if batch.regions is not None:
            assert made.regions.boxes_N4.dtype == torch.float32 and torch.equal(made.regions.boxes_N4, batch.regions.boxes_N4)
            assert made.regions.features_NF.dtype == {"bf16-true": torch.bfloat16, "16-true": torch.float16}[precision]
