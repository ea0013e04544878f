"""Reconstruction against NumPy: ratios, errors, codes in use; batches that do not matter; nothing for other models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import evaluation as fakes
from helpers.plain_dvae import small
from helpers.shards import picture

from mmpretrain.data.collate import Collator
from mmpretrain.data.image import ImageTransform
from mmpretrain.evaluate import reconstruction as module
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.reconstruction import psnr, reconstruction
from mmpretrain.evaluate.result import shown
from mmpretrain.evaluate.samples import EvalSet
from mmpretrain.evaluate.suite import Limits, evaluate, table
from mmpretrain.types import Sample


def coded() -> Pretrained:
    transform = ImageTransform("dalle", 8, normalize="half", decoder="pil")
    return Pretrained(small(), {}, None, transform, None, collate=Collator(0, transform.mean, transform.std))


def pictures(n: int = 7) -> EvalSet:
    return EvalSet("set", [Sample(f"k{i}", (), (picture(i),)) for i in range(n)], "f00")


def test_numbers_are_those_of_numpy(monkeypatch):
    model, data = coded(), pictures()
    found = {result.name.rpartition("/")[2]: result for result in reconstruction(model, data)}
    x = np.stack([model.image_transform.read(sample.images).numpy() for sample in data.samples]) / 255.0
    ids = model.model.encode(torch.from_numpy(x).float())
    back = model.model.decode(ids).numpy().astype(np.float64)
    errors = ((back - x) ** 2).mean((1, 2, 3))
    seen = np.bincount(ids.flatten().numpy(), minlength=10)
    share = seen[seen > 0] / seen.sum()
    assert found["mse"].value == pytest.approx(errors.mean(), rel=1e-5)
    assert found["psnr"].value == pytest.approx((10 * np.log10(1 / errors)).mean(), rel=1e-5)
    assert found["usage"].value == (seen > 0).mean() and found["dead"].value == (seen == 0).sum()
    assert found["perplexity"].value == pytest.approx(math.exp(-(share * np.log(share)).sum()))
    stamp = found["psnr"].stamp
    assert stamp.count == 7 and stamp.protocol == "7 pictures of 8 x 8 pixels, 2 x 2 most probable of 10 codes each, 13 bits a picture"
    monkeypatch.setattr(module, "VALUES", 1)  # one picture at a time
    assert [r.value for r in reconstruction(model, data)] == pytest.approx([r.value for r in found.values()], rel=1e-6)


def test_limits_other_models_and_empty_sets():
    results = evaluate(coded(), [pictures()], limits=Limits(reconstruction=3))
    assert {result.stamp.count for result in results} == {3} and len(results) == 5
    assert reconstruction(fakes.pretrained(), fakes.coloured()) == []
    assert reconstruction(coded(), EvalSet("none", [Sample("k", ("a text",), ())], "f00")) == []
    assert evaluate(coded(), [pictures()], only=["retrieval", "matching", "mlm", "zeroshot"]) == []


def test_values_are_told_by_their_units():
    assert shown("reconstruction/a/psnr", 23.456) == "23.46 dB" and shown("reconstruction/a/mse", 0.0123456) == "0.01235"
    assert shown("reconstruction/a/usage", 0.5) == "50.0 %" and shown("reconstruction/a/dead", 3.0) == "3"
    assert shown("retrieval/a/i2t_median_rank", 2.0) == "2.0" and shown("reconstruction/a/perplexity", 12.34) == "12.3"
    assert table(reconstruction(coded(), pictures())).row_count == 5
    assert psnr(torch.tensor([0.01, 0.0])).tolist() == pytest.approx([20.0, 100.0])
