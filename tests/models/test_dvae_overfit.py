"""Eight pictures go through the most probable codes and come back, for every kind of bottleneck, with fresh draws at every step."""

from __future__ import annotations

import math

import pytest
import torch

from mmpretrain.models.dvae import DVAE
from mmpretrain.nn.dvae import unit_pixels
from mmpretrain.objectives.commitment import Commitment
from mmpretrain.objectives.elbo import ELBO
from mmpretrain.train.phases import Ramp
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.train.schedule import WarmupCosine
from mmpretrain.types import Batch, Pixels

STEPS, RATE = 250, 1e-2


def eight() -> Pixels:
    """Pictures of 16 coloured squares each, 16 x 16."""
    colours = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = (255 * colours).to(torch.uint8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return Pixels(pixels, ((16, 16),) * 8, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("sample", "beta"),
    [("relaxed", 0.1), *(pytest.param(*one, marks=pytest.mark.slow) for one in (("straight_through", 0.05), ("nearest", 0.0)))],
)
def test_eight_pictures_are_rebuilt_from_their_codes(sample, beta):
    torch.manual_seed(0)
    model, image = DVAE((16, 32), 1, 32, 16, 16, sample, decay=0.9), eight()
    objectives = {"elbo": ELBO("mse", beta), **({"commitment": Commitment()} if sample == "nearest" else {})}
    root = Pretraining(model, objectives)
    root.bind(None)
    optimizer = torch.optim.AdamW(root.parameters(), lr=RATE, betas=(0.9, 0.95))
    schedule, temperature = WarmupCosine(warmup=7, floor=0.02), Ramp(1.0, 0.0625, int(0.8 * STEPS))
    for step in range(STEPS):
        model.temperature = temperature.at(step)
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule.factor(step, STEPS)
        batch = Batch(("",) * 8, torch.arange(8) * 977 + step, image=image)
        loss = sum(one.weight * score.sum / 8 for one, score in zip(objectives.values(), root(batch).values(), strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        root.after_step()
    x, ids = unit_pixels(image), model.eval().encode(unit_pixels(image))
    ratio = lambda guess: -10 * math.log10(float((x - guess).square().mean()))
    assert ratio(model.decode(ids)) > ratio(x.mean((0, 2, 3), keepdim=True)) + 4.5
    assert ids.unique().numel() >= 16
