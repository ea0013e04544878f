"""BertAdam against ten lines of NumPy; limits of single tensors; the policies of decay."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.heads import VocabularyHead
from mmpretrain.nn.region_heads import RegionHead, TiedFeatureHead
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.train import clip
from mmpretrain.train.bert_adam import BertAdam
from mmpretrain.train.optim import Optimizer


def reference(p: np.ndarray, grads: list[np.ndarray], lr: float, b1: float, b2: float, eps: float, decay: float, limit: float | None):
    """No bias correction, decoupled decay, the gradient of the tensor cut to ``limit``; float64."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for g in grads:
        if limit is not None:
            g = g * min(1.0, limit / (np.sqrt((g**2).sum()) + 1e-6))
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        p = p - lr * (m / (np.sqrt(v) + eps) + decay * p)
    return p


@pytest.mark.parametrize("limit", [None, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_it_moves_as_the_formula_says(limit: float | None, decay: float) -> None:
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=shape) for shape in ((5, 7), (3,), (1,))]
    grads = [[rng.normal(size=start.shape) * scale for _ in range(6)] for start, scale in zip(starts, (1.0, 0.1, 10.0), strict=True)]
    parameters = [nn.Parameter(torch.from_numpy(start).float()) for start in starts]
    optimizer = BertAdam(parameters, lr=0.02, betas=(0.9, 0.999), eps=1e-6, weight_decay=decay, clip_each=limit)
    for step in range(6):
        for parameter, series in zip(parameters, grads, strict=True):
            parameter.grad = torch.from_numpy(series[step]).float()
        optimizer.step()
    for parameter, start, series in zip(parameters, starts, grads, strict=True):
        expected = reference(start, series, 0.02, 0.9, 0.999, 1e-6, decay, limit)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=2e-6, atol=2e-6)


def test_the_first_step_is_not_corrected_for_bias() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    BertAdam([parameter], lr=1.0, weight_decay=0.0, eps=0.0).step()
    assert parameter.item() == pytest.approx(-0.1 / 0.001**0.5, rel=1e-5)  # Adam would move by 1


def test_each_tensor_is_cut_by_itself_and_gradients_stay() -> None:
    small, large = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    small.grad, large.grad = torch.full((4,), 0.1), torch.full((4,), 10.0)
    optimizer = Optimizer(kind="bert_adam", clip_each=1.0).build(nn.ParameterDict({"small": small, "large": large}))
    optimizer.step()
    means = [optimizer.state[p]["exp_avg"].norm().item() for p in (small, large)]
    assert means == pytest.approx([0.1 * 0.2, 0.1 * 1.0], rel=1e-5)
    assert large.grad[0] == 10.0
    assert [norm.item() for norm in clip.each_norm([small, large])] == pytest.approx([0.2, 20.0])


def test_what_has_no_gradient_stays_and_states_are_loaded() -> None:
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = BertAdam(parameters, lr=0.1)
    parameters[0].grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(parameters[1], torch.ones(3)) and len(optimizer.state_dict()["state"]) == 1
    copies = [nn.Parameter(p.detach().clone()) for p in parameters]
    loaded = BertAdam(copies, lr=0.1)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, held in ((optimizer, parameters), (loaded, copies)):
        for p in held:
            p.grad = torch.full((3,), 0.5)
        one.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, copies, strict=True))
    assert optimizer.step(lambda: 3.0) == 3.0


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm, self.dense = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 4)


def decayed(policy: str, module: nn.Module) -> set[str]:
    groups = Optimizer(decay=policy).groups(module)  # type: ignore[arg-type]
    assert sorted(n for g in groups for n in g["names"]) == sorted(n for n, _ in module.named_parameters())
    return {name for group in groups if group["weight_decay"] for name in group["names"]}


def test_policies_of_decay() -> None:
    module = Named()
    everything = {name for name, _ in module.named_parameters()}
    standard = decayed("standard", module)
    assert standard == {"words.weight", "dense.weight"} == decayed("vilt", module)
    assert decayed("swapped", module) == everything - standard
    assert decayed("all", module) == everything


class UniterLike(nn.Module):
    """The parts of UNITER that its rule tells apart, under the names that they have in training."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"text": TextEmbedder(9, 8, 4, segments=2)})
        self.model["regions"] = RegionEmbedder(8, 6, "xyxywha", branch_eps=1e-12, mask_embedding=True)
        heads = {"mlm": VocabularyHead(8, 9, self.model["text"].words), "mrc": RegionHead(8, 5)}
        heads["mrfr"] = TiedFeatureHead(self.model["regions"].projection)
        self.objectives = nn.ModuleDict({name: nn.ModuleDict({"head": head}) for name, head in heads.items()})


def test_uniter_decays_four_gains_too_many() -> None:
    module = UniterLike()
    found = decayed("uniter", module) - decayed("standard", module)
    assert found == {
        "model.regions.feature_norm.weight",
        "model.regions.box_norm.weight",
        "objectives.mrc.head.transform.norm.weight",
        "objectives.mrfr.head.transform.norm.weight",
    }
