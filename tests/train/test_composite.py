"""Several optimisers as one against the same ones apart; what is saved and loaded; a run that is resumed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from train.cases import SGD
from train.resume import go
from train.runs import build, run
from train.test_resume import assert_identical

from mmpretrain.train.composite import Composite
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.schedule import Milestones, StepScheduler


class Pixels(nn.Module):
    """Names as in a model with convolutions of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cnn = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
        self.cnn2, self.norm, self.out = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)


def published() -> Optimizer:
    """Pixel-BERT's: SGD with lr 1e-2, weight decay 5e-4 and momentum 0.9 for the convolutions; AdamW with 1e-4 and 1e-2 for all else."""
    cnn = Optimizer(lr=1e-2, kind="sgd", betas=(0.9, 0.999), weight_decay=5e-4, decay="all")
    return Optimizer(lr=1e-4, weight_decay=1e-2, betas=(0.9, 0.999), decay="standard", parts={"cnn": cnn})


def gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("switch", [{}, {"foreach": True}, {"fused": True}])
def test_parts_move_as_the_same_optimisers_apart(switch: dict[str, bool]) -> None:
    ours, theirs = Pixels(), Pixels()
    options = published()
    for one in (options, *options.parts.values()):
        one.foreach, one.fused = switch.get("foreach"), switch.get("fused")
    optimizer = options.build(ours)
    sgd = torch.optim.SGD(theirs.cnn.parameters(), lr=1e-2, momentum=0.9, weight_decay=5e-4, **switch)
    decayed = [theirs.cnn2.weight, theirs.out.weight]
    plain = [theirs.cnn2.bias, *theirs.norm.parameters(), theirs.out.bias]
    groups = [{"params": decayed, "weight_decay": 1e-2}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-4, **switch)
    schedule = StepScheduler(optimizer, Milestones([0.625, 0.875]), 8)
    rates = []
    for step in range(8):
        rates.append([group["lr"] for group in optimizer.param_groups])
        for module in (ours, theirs):
            gradients(module, step)
        for one in (sgd, adamw):
            for group in one.param_groups:
                group["lr"] = (1e-2 if one is sgd else 1e-4) * (1.0 if step < 5 else 0.1 if step < 7 else 0.01)
            one.step()
        optimizer.step()
        schedule.step()
    assert isinstance(optimizer, Composite) and len(optimizer.param_groups) == 3
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8, msg=name)
    assert rates[4] == pytest.approx([1e-2, 1e-4, 1e-4]) and rates[5] == pytest.approx([1e-3, 1e-5, 1e-5])
    assert rates[7] == pytest.approx([1e-4, 1e-6, 1e-6])


def test_a_part_takes_what_is_below_its_name_and_every_parameter_is_taken_once() -> None:
    module = Pixels()
    groups = published().groups(module)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in module.named_parameters())
    assert groups[0]["names"] == ["cnn.0.weight", "cnn.0.bias", "cnn.1.weight", "cnn.1.bias"]
    everything = Optimizer(parts={"cnn": Optimizer(kind="sgd"), "": Optimizer(kind="sgd", lr=1.0)})
    with pytest.raises(ValueError, match="parts"):
        everything.groups(module)
    alone = nn.ModuleDict({"cnn": module.cnn})
    assert isinstance(published().build(alone), torch.optim.SGD)


def test_mistakes_name_the_option() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.parts.*'model\.cnn'"):
        Optimizer(parts={"model.cnn": Optimizer()}).groups(Pixels())
    with pytest.raises(ValueError, match="cannot have parts"):
        Optimizer(parts={"a": Optimizer(parts={"b": Optimizer()})})
    with pytest.raises(ValueError, match="kinds are adamw"):
        Optimizer(kind="adam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="policies of decay standard"):
        Optimizer(decay="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gradient_clip_val"):
        Optimizer(clip_each=1.0)


def test_states_are_loaded_into_the_parts() -> None:
    module = Pixels()
    optimizer = published().build(module)
    for step in range(2):
        gradients(module, step)
        optimizer.step()
    other = copy.deepcopy(module)
    loaded = published().build(other)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert len(loaded.state) == len(list(other.parameters()))
    for one, two in ((module, optimizer), (other, loaded)):
        StepScheduler(two, Milestones([1]), 3)
        gradients(one, 7)
        two.step()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    moved = loaded.state_dict()["state"]
    assert {frozenset(entry) for entry in moved.values()} == {frozenset({"momentum_buffer"}), frozenset({"step", "exp_avg", "exp_avg_sq"})}


def test_the_guard_speaks_to_fused_kernels_through_it() -> None:
    module, options = Pixels(), published()
    for one in (options, *options.parts.values()):
        one.fused = True
    optimizer = options.build(module)
    assert all(group["fused"] for group in optimizer.param_groups)
    before = copy.deepcopy(module.state_dict())
    gradients(module, 0)
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), None  # type: ignore[attr-defined]
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    optimizer.step()
    assert not torch.equal(module.out.weight, before["out.weight"])


def test_a_step_counts_once_in_training() -> None:
    module = build(optimizer={"parts": SGD})
    trace = run(module, steps=4)
    assert module.trainer.global_step == len(trace.losses) == 4
    assert isinstance(module.optimizers().optimizer, Composite)


@pytest.mark.parametrize("options", [{"parts": SGD}, {"kind": "bert_adam", "clip_each": 0.05}], ids=["parts", "bert_adam"])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, options: dict) -> None:
    go(tmp_path / "whole", 7, optimizer=options)
    for stop in (3, 7):
        go(tmp_path / "broken", stop, optimizer=options)
    assert_identical(tmp_path / "whole", tmp_path / "broken")
