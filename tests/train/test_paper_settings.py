"""Numbers of papers and of their code, held against what the recipes in ``configs/paper`` make of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from helpers.recipes import module_on_meta, parsed

from mmpretrain.train.optim import Optimizer


class Told(NamedTuple):
    """What a paper or its code says."""

    steps: int
    batch: int
    rates: dict[int, float]  # optimiser step -> rate
    betas: tuple[float, float]
    decay: float
    clip: float | None
    ema: tuple[float, int] | None  # decay, optimiser steps from one update to the next
    weights: dict[str, float]  # of objectives


COSINE = (1 + 0.5**0.5) / 2  # of a quarter of the way
TOLD = {
    "dvae": Told(  # arXiv 2102.12092, section A.2: half a cosine from 1e-4 to 1.25e-6 over 1,200,000 of 3,000,000 updates
        3_000_000, 512,
        {0: 1e-4, 300_000: 1.25e-6 + (1e-4 - 1.25e-6) * COSINE, 600_000: (1e-4 + 1.25e-6) / 2, 1_200_000: 1.25e-6, 2_999_999: 1.25e-6},
        (0.9, 0.999), 1e-4, None, (0.999, 1), {"elbo": 1.0},
    ),
    "dalle": Told(  # appendix B.2: 5,000 updates of warm-up to 4.5e-4
        430_000, 1024, {0: 0.0, 2500: 2.25e-4, 5000: 4.5e-4, 429_999: 4.5e-4},
        (0.9, 0.96), 4.5e-2, 4.0, (0.99, 25), {"text": 1 / 8, "code": 7 / 8},
    ),
    "beit": Told(  # the authors' command: 800 epochs of 625 steps, 10 of them warm-up, from 1.5e-3 to 1e-5
        500_000, 2048, {3124: 7.5e-4, 6249: 1.5e-3, 6250 + 493_750 // 2: (1.5e-3 + 1e-5) / 2, 500_000: 1e-5},
        (0.9, 0.98), 0.05, 3.0, None, {"mim": 1.0},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=TOLD)
def recipe(request: pytest.FixtureRequest) -> tuple[Told, Any, dict[str, Any]]:
    """What is told, what is trained, and the configuration."""
    files = [f"paper/{request.param}.yaml"]
    return TOLD[request.param], module_on_meta(files), parsed(files).config_dump


def test_rates(recipe: tuple[Told, Any, dict[str, Any]]) -> None:
    told, module, config = recipe
    assert config["trainer"]["max_steps"] == told.steps
    total = module.schedule.total or told.steps
    found = {step: module.optimizer.lr * module.schedule.factor(step, total) for step in told.rates}
    assert found == pytest.approx(told.rates, rel=1e-3 if told.weights.keys() == {"mim"} else 1e-9)  # BEiT's floor has three digits


def test_the_rest(recipe: tuple[Told, Any, dict[str, Any]]) -> None:
    told, module, config = recipe
    assert isinstance(module.optimizer, Optimizer)
    for group in module.optimizer.build(module.root).param_groups:
        assert (group["betas"], group["eps"]) == (told.betas, 1e-8) and group["weight_decay"] in (0.0, told.decay)
    assert told.decay in {group["weight_decay"] for group in module.optimizer.groups(module.root)}
    assert config["trainer"].get("gradient_clip_val") == told.clip and config["data"]["batch_size"] == told.batch
    assert (None if module.ema_decay is None else (module.ema_decay, module.ema_every)) == told.ema
    assert {name: one.weight for name, one in module.root.objectives.items()} == told.weights
    if (drops := getattr(module.schedule, "times", None)) is not None:  # halved five times
        assert (drops, module.schedule.drop) == (5, 0.5)
