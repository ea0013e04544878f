"""Rates beside a dVAE: the table, PCA of few and of many pictures, and the training that a checkpoint's recipe asks for."""

from __future__ import annotations

import argparse
import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.recipes import parsed
from helpers.scripts import script

from mmpretrain.cli.layering import layer

UNSET = dict.fromkeys(("steps", "batch", "lr", "matrix_lr", "kl_weight"))


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return script("dvae_rates")


def test_the_table(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["dvae_rates.py", "--tiny"])
    benchmark.main()
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("the continuous autoencoder took ")
    assert lines[1].startswith("24 training and 8 held-out pictures of 16 x 16, checkpoint dvae")
    names = ("one colour, the average", "dVAE, 16 positions of 16 codes", "PCA, ", "continuous, 2 values a position, 2 steps")
    assert len(lines) == 6 and all(line.startswith(name) for line, name in zip(lines[2:], names, strict=True))
    bits = [float(line.split(" bits ")[0].split()[-1]) for line in lines[2:]]
    assert bits[:3] == [0, 64, 64] and all(line.count(" dB +- ") == 1 for line in lines[2:])


@pytest.mark.parametrize("pictures", [30, 12, 7])
def test_components_of_few_pictures_are_those_of_many(benchmark: ModuleType, pictures: int) -> None:
    """12 values of each picture: the products of columns and those of rows give one decomposition."""
    rows = torch.randn(pictures, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    centred = rows - rows.mean(0)
    values, axes = benchmark.components(centred)
    expected = torch.linalg.eigvalsh(centred.T @ centred / pictures).flip(0)[: len(values)]
    torch.testing.assert_close(values, expected, atol=1e-12, rtol=1e-9)
    assert len(values) == (12 if pictures >= 12 else pictures - 1)
    torch.testing.assert_close(axes.T @ axes, torch.eye(len(values), dtype=torch.float64))
    torch.testing.assert_close(centred @ axes @ axes.T, centred)  # nothing of the pictures is lost


def test_pca_at_some_bits(benchmark: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    few, held = (torch.rand(n, 3, 4, 4, generator=generator) for n in (6, 5))
    found = benchmark.principal(few, held, 20)
    assert found.bits == 20 and found.ratios.shape == (5,) and torch.isfinite(found.ratios).all()
    assert benchmark.principal(few, held, 10**6).bits == 5 * benchmark.MOST_BITS  # more than five components cannot have
    assert benchmark.principal(few, few, 40).ratios.mean() > benchmark.principal(few, few, 10).ratios.mean()


def told(benchmark: ModuleType, config: Any, **options: Any) -> Any:
    return benchmark.training(config, argparse.Namespace(**{**UNSET, **options}))


def test_the_training_is_that_of_the_recipe(benchmark: ModuleType) -> None:
    recipe = layer(["dvae.yaml"]).config
    model, ramp = recipe["model"], recipe["model"]["phases"][0]["set"]["elbo.kl_weight"]
    for config in (parsed(["dvae.yaml"]).config_dump, {}):  # of a checkpoint, and of one that does not say
        found = told(benchmark, config)
        assert (found.steps, found.batch) == (recipe["trainer"]["max_steps"], recipe["data"]["batch_size"])
        assert {name: getattr(found.optimizer, name) for name in ("kind", "lr", "matrix_lr", "weight_decay")} == {
            name: model["optimizer"][name] for name in ("kind", "lr", "matrix_lr", "weight_decay")
        }
        assert (found.schedule.warmup, found.schedule.floor) == tuple(model["schedule"]["init_args"][name] for name in ("warmup", "floor"))
        middle = (ramp["from"] + ramp["to"]) / 2
        assert [found.kl_weight(step) for step in (0, ramp["over"] // 2, 10**6)] == pytest.approx([ramp["from"], middle, ramp["to"]])


def test_options_go_before_the_recipe(benchmark: ModuleType) -> None:
    found = told(benchmark, {}, steps=7, batch=3, lr=0.5, matrix_lr=0.0, kl_weight=0.2)
    assert (found.steps, found.batch, found.optimizer.lr, found.optimizer.kind) == (7, 3, 0.5, "adamw")
    assert found.kl_weight(0) == found.kl_weight(5000) == 0.2 and math.isclose(told(benchmark, {}, matrix_lr=0.1).optimizer.matrix_lr, 0.1)
    paper = parsed(["paper/dvae.yaml"]).config_dump
    with pytest.raises(ValueError, match="likelihood=logit_laplace: set --kl-weight"):
        told(benchmark, paper)
    assert told(benchmark, paper, kl_weight=0.1).optimizer.kind == "adamw"
