"""Dropout on the CPU: rates, scale, gradients, and the same draws from the same seed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmpretrain.nn.dropout import Dropout, dropout


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_rates_within_four_sigma_and_the_mean_stays(rate):
    torch.manual_seed(0)
    n = 1_000_001  # not a multiple of four
    y = dropout(torch.ones(n), rate)
    zeros = int((y == 0).sum())
    assert abs(zeros - n * rate) < 4 * math.sqrt(n * rate * (1 - rate)) + n / 65536
    kept = y[y != 0]
    assert torch.equal(kept, kept[:1].expand_as(kept)) and float(kept[0]) == pytest.approx(1 / (1 - round(rate * 65536) / 65536), rel=1e-6)
    assert float(y.double().mean()) == pytest.approx(1, abs=4 * math.sqrt(rate / (1 - rate) / n))


def test_neighbours_are_independent():
    """The four numbers of one random word, and those of the next."""
    torch.manual_seed(0)
    y = (dropout(torch.ones(1_000_000), 0.5) == 0).double()
    for shift in range(1, 9):
        both = float((y[:-shift] * y[shift:]).mean())
        assert abs(both - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1e6) + 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_pass_where_values_do(dtype):
    torch.manual_seed(1)
    x = torch.randn(7, 5, 3, dtype=dtype).transpose(0, 2).requires_grad_()
    y = dropout(x, 0.25)
    weights = torch.randn_like(y)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    kept = y != 0
    assert y.shape == x.shape and y.dtype == dtype and 0 < int(kept.sum()) < kept.numel()
    scale = 65536 / (65536 - 16384)
    assert torch.allclose(y, torch.where(kept, x * scale, 0)) and torch.allclose(gradient, torch.where(kept, weights * scale, 0))


def test_draws_follow_the_seed_also_when_a_block_is_computed_again():
    layer = nn.Sequential(nn.Linear(6, 6), Dropout(0.5), nn.Linear(6, 6))
    x, found = torch.randn(9, 6), []
    for again in (False, True):
        torch.manual_seed(3)
        y = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        found.append((y, torch.autograd.grad(y.square().sum(), list(layer.parameters()))))
    assert torch.equal(found[0][0], found[1][0]) and all(map(torch.equal, found[0][1], found[1][1]))


def test_the_ends_are_those_of_torch():
    x = torch.randn(4, 4)
    layer = Dropout(0.5).eval()
    assert torch.equal(layer(x), x) and torch.equal(dropout(x, 0.0), x) and torch.equal(dropout(x, 1.0), torch.zeros(4, 4))
    assert dropout(torch.zeros(0, 3), 0.5).shape == (0, 3) and isinstance(layer, nn.Dropout)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Dropout(1.5)
