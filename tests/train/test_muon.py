"""Muon against torch's, AdamW beside it unchanged, query, key and value apart, states that can be loaded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmpretrain.nn.attention import Attention
from mmpretrain.train.muon import Muon, orthogonal
from mmpretrain.train.optim import Optimizer


class Small(nn.Module):
    """Matrices of three shapes, a convolution, an attention, a table, a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.patch, self.wide, self.tall = nn.Conv2d(3, 8, 2), nn.Linear(8, 32), nn.Linear(32, 8)
        self.attention = Attention(8, 2)


def gradients(module: nn.Module, seed: int, but: tuple[str, ...] = ()) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.grad = None if name in but else drawn


@pytest.mark.parametrize("shape", [(3, 8, 32), (2, 32, 8), (1, 8, 8)])
def test_singular_values_come_close_to_one_and_directions_stay(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    inside = u.mT @ orthogonal(x) @ vh.mT  # diagonal where the directions stay
    values = inside.diagonal(dim1=1, dim2=2)
    assert (inside - torch.diag_embed(values)).abs().max() < 1e-4
    assert values[s > 0.1 * s.amax(1, keepdim=True)].min() > 0.6 and values.max() < 1.3
    assert orthogonal(torch.zeros(1, 4, 4)).abs().max() == 0


def test_matrices_move_as_with_torchs_muon_and_all_else_as_with_adamw() -> None:
    """torch's computes in bf16, hence the tolerance; it takes no convolution and does not cut query, key and value apart."""
    ours, theirs = Small(), Small()
    mine = Optimizer(lr=1e-2, kind="muon", matrix_lr=0.02, weight_decay=0.1).build(ours)
    plain = {"wide.weight", "tall.weight", "attention.out.weight"}
    matrices = [p for name, p in theirs.named_parameters() if name in plain]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1)
    rest = {name: p for name, p in theirs.named_parameters() if p.dim() < 2 or name == "words.weight"}
    groups = [
        {"params": [p for name, p in rest.items() if name == "words.weight"], "weight_decay": 0.1},
        {"params": [p for name, p in rest.items() if name != "words.weight"], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98))
    for step in range(4):
        for module in (ours, theirs):
            gradients(module, step)
        mine.step()
        muon.step()
        adamw.step()
    start = dict(Small().named_parameters())
    for name, parameter in ours.named_parameters():
        other = dict(theirs.named_parameters())[name]
        if name in plain:
            moved = (other - start[name]).abs().max()
            assert (parameter - other).abs().max() < 0.03 * moved, name
        elif name in rest:
            assert torch.equal(parameter, other), name


def test_query_key_and_value_are_three_matrices_and_a_convolution_is_one() -> None:
    module, apart = Small(), Small()
    groups = Optimizer(kind="muon").groups(module)
    parts = {name: group["parts"] for group in groups for name in group["names"]}
    assert parts["attention.qkv.weight"] == 3 and parts["patch.weight"] == parts["wide.weight"] == 1
    assert {parts[name] for name in ("words.weight", "norm.weight", "wide.bias", "attention.qkv.bias")} == {0}
    optimizer = Optimizer(kind="muon", weight_decay=0.0).build(module)
    gradients(module, 5)
    before = module.attention.qkv.weight.detach().clone(), module.patch.weight.detach().clone()
    optimizer.step()
    pieces = [nn.Parameter(piece.clone()) for piece in (*before[0].chunk(3), before[1].flatten(1))]
    gradients(apart, 5)
    for piece, grad in zip(pieces, (*apart.attention.qkv.weight.grad.chunk(3), apart.patch.weight.grad.flatten(1)), strict=True):
        piece.grad = grad
    Muon([{"params": pieces, "parts": 1, "lr": 0.02, "weight_decay": 0.0}]).step()
    assert (torch.cat(pieces[:3]) - module.attention.qkv.weight).abs().max() < 1e-6
    assert (pieces[3].view_as(before[1]) - module.patch.weight).abs().max() < 1e-6


def test_a_parameter_without_gradient_stays_and_states_can_be_loaded() -> None:
    module = Small()
    optimizer = Optimizer(kind="muon").build(module)
    still = module.tall.weight.detach().clone()
    gradients(module, 1, but=("tall.weight", "norm.bias"))
    optimizer.step()
    assert torch.equal(still, module.tall.weight)
    other = copy.deepcopy(module)
    loaded = Optimizer(kind="muon").build(other)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, two in ((module, optimizer), (other, loaded)):
        gradients(one, 2)
        two.step()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_the_guard_reads_the_numbers_before_a_step_of_muon() -> None:
    groups = Optimizer(kind="muon", fused=True).build(Small()).param_groups
    assert {bool(group["fused"]) for group in groups if group["parts"]} == {False}


def test_heads_of_objectives_are_left_to_adamw() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.objectives = Small(), nn.ModuleDict({"itm": nn.Linear(8, 2)})

    parts = {name: group["parts"] for group in Optimizer(kind="muon").groups(Root()) for name in group["names"]}
    assert parts["objectives.itm.weight"] == 0 and parts["model.wide.weight"] == 1
