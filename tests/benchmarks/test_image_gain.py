"""The gain of the image in the loss of masked words, against one sample at a time."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers.region_checkpoints import checkpoint, region_samples, shake
from helpers.scripts import script
from torch.nn import functional as F

import mmpretrain
from mmpretrain.evaluate.samples import EvalSet
from mmpretrain.random import key_of
from mmpretrain.types import Batch


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return script("image_gain")


def test_the_gain_is_that_of_samples_one_by_one(tmp_path: Path, benchmark: ModuleType) -> None:
    path = checkpoint(tmp_path / "uniter.ckpt", "uniter")
    shake(path)
    model, samples = mmpretrain.load(path), region_samples(9)
    found = benchmark.image_gain(model, EvalSet("s", samples, "f"), batch_size=4)
    visuals = [model.see(sample) for sample in samples]
    swapped = benchmark.others(list(zip(samples, visuals, strict=True)))
    sums = {"own": 0.0, "other": 0.0}
    tokens = 0
    for i, sample in enumerate(samples):
        text = model.text([model.tokenizer.tokenize(sample.captions[0])])
        for name, shown in (("own", visuals[i]), ("other", swapped[i])):
            batch = Batch(("",), torch.tensor([key_of(benchmark.MASK, 0, i)]), text, **model.visuals([shown]))

            def step(network, objectives, batch=batch):
                corrupted = objectives["mlm"].corrupt(batch, {})
                logits = objectives["mlm"].logits(network(corrupted, "fused"), corrupted)
                labels = corrupted.targets["mlm"].labels_R
                return float(F.cross_entropy(logits, labels, reduction="sum")), len(labels)

            loss, count = model.run(step)
            sums[name] += loss
            tokens += count if name == "own" else 0
    assert found.tokens == tokens
    assert found.own == pytest.approx(sums["own"] / tokens, rel=1e-5) and found.other == pytest.approx(sums["other"] / tokens, rel=1e-5)
    assert found.error > 0


def test_more_draws_of_the_masks_are_sums_over_them(tmp_path: Path, benchmark: ModuleType) -> None:
    path = checkpoint(tmp_path / "uniter.ckpt", "uniter")
    model, data = mmpretrain.load(path), EvalSet("s", region_samples(9), "f")
    parts = [benchmark.image_gain(model, data, batch_size=4, seed=seed) for seed in (0, 1)]
    found = benchmark.image_gain(model, data, batch_size=4, draws=2)
    assert found.tokens == sum(part.tokens for part in parts)
    assert found.own * found.tokens == pytest.approx(sum(part.own * part.tokens for part in parts), rel=1e-9)
    assert found.gain * found.tokens == pytest.approx(sum(part.gain * part.tokens for part in parts), rel=1e-6)


def test_the_other_image_is_of_another_text(benchmark: ModuleType) -> None:
    samples = region_samples(4)
    alike = [samples[0], samples[1], samples[0]._replace(key="again"), samples[3]]
    assert benchmark.others([(sample, sample.key) for sample in alike]) == ["k3", "k3", "k1", "k1"]
    with pytest.raises(ValueError, match="one text"):
        benchmark.others([(samples[0], ""), (samples[0], "")])
