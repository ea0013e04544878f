"""InfoNCE and the sigmoid loss in one process: NumPy, caching, false pairs, clamps. Ranks: see test_ranks."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers.objectives import keys, spec
from torch import nn
from torch.nn import functional as F

from mmpretrain.nn.hidden import Paired
from mmpretrain.objectives.contrastive import Contrastive
from mmpretrain.objectives.sigmoid import Sigmoid
from mmpretrain.types import Batch

N = 12


def paired(bias: float | None = None, n: int = N, dtype: torch.dtype = torch.float64) -> Paired:
    generator = torch.Generator().manual_seed(0)
    draw = lambda: F.normalize(torch.randn(n, 5, generator=generator, dtype=torch.float64), dim=-1)
    image, text = (draw().to(dtype).requires_grad_() for _ in "ab")
    scale = torch.tensor([1.3], dtype=dtype, requires_grad=True)
    return Paired(image, text, scale, None if bias is None else torch.tensor([bias], dtype=dtype, requires_grad=True))


def pairs(matched: list[bool] | None = None, n: int = N) -> Batch:
    return Batch(tuple(f"k{i}" for i in range(n)), keys(n), matched_B=None if matched is None else torch.tensor(matched))


MATCHED = [i % 4 > 0 for i in range(N)]


@pytest.mark.parametrize("matched", [None, MATCHED])
@pytest.mark.parametrize("gather", ["local_grad", "global_grad", "global_no_grad"])
def test_contrastive_against_numpy(gather, matched):
    hidden, objective = paired(), Contrastive(gather)
    score = objective(hidden, pairs(matched))
    logits = math.exp(1.3) * hidden.image_BE.detach().numpy() @ hidden.text_BE.detach().numpy().T
    own, counts = logits.diagonal(), np.array(matched or [True] * N)
    rows, columns = np.log(np.exp(logits).sum(1)) - own, np.log(np.exp(logits).sum(0)) - own
    assert score.sum.item() == pytest.approx(((rows + columns) / 2)[counts].sum(), rel=1e-12)
    assert score.count.item() == counts.sum() == objective.count(pairs(matched)).item()
    i2t, t2i = (logits.argmax(axis) == np.arange(N) for axis in (1, 0))
    assert score.stats["i2t_accuracy"][0].item() == i2t[counts].sum() and score.stats["t2i_accuracy"][0].item() == t2i[counts].sum()
    assert score.stats["accuracy"][0].item() == i2t[counts].sum() + t2i[counts].sum() and score.stats["accuracy"][1] == 2 * score.count
    assert (score.stats["logit_scale"][0] / score.count).item() == pytest.approx(math.exp(1.3))


@pytest.mark.parametrize("matched", [None, MATCHED])
@pytest.mark.parametrize("exchange", Sigmoid.modes)
def test_sigmoid_against_numpy(exchange, matched):
    hidden, objective = paired(bias=-2.0), Sigmoid(exchange)
    score = objective(hidden, pairs(matched))
    logits = math.exp(1.3) * hidden.image_BE.detach().numpy() @ hidden.text_BE.detach().numpy().T - 2.0
    counts = np.array(matched or [True] * N)
    loss = np.log1p(np.exp(-(2 * np.eye(N) - 1) * logits))
    assert score.sum.item() == pytest.approx(loss[counts].sum(), rel=1e-12)
    assert score.count.item() == counts.sum()
    assert score.stats["accuracy"][0].item() == (logits.argmax(1) == np.arange(N))[counts].sum()


def test_sigmoid_gradients_against_autograd():
    for matched in (None, MATCHED):
        hidden = paired(bias=-2.0)
        Sigmoid()(hidden, pairs(matched)).sum.backward()
        other = paired(bias=-2.0)
        logits = other.logit_scale.exp() * other.image_BE @ other.text_BE.T + other.logit_bias
        losses = -F.logsigmoid((2 * torch.eye(N) - 1) * logits)
        losses[torch.tensor(matched or [True] * N)].sum().backward()
        for a, b in zip(hidden[:4], other[:4], strict=True):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-12, rtol=1e-12)


def test_open_clip_gives_the_same_losses():
    open_clip = pytest.importorskip("open_clip")
    hidden = paired(bias=-2.0, dtype=torch.float32)
    theirs = open_clip.loss.ClipLoss()(hidden.image_BE, hidden.text_BE, hidden.logit_scale.exp())
    ours = Contrastive()(hidden._replace(logit_bias=None), pairs())
    assert (ours.sum / ours.count).item() == pytest.approx(theirs.item(), rel=1e-6)
    theirs = open_clip.loss.SigLipLoss()(hidden.image_BE, hidden.text_BE, hidden.logit_scale.exp(), hidden.logit_bias)
    ours = Sigmoid()(hidden, pairs())
    assert (ours.sum / ours.count).item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("objective, bias", [(Contrastive(), None), (Sigmoid(), -2.0)])
def test_cached_features_give_the_gradients_of_one_big_batch(objective, bias):
    torch.manual_seed(0)
    towers = nn.ModuleList([nn.Linear(6, 5), nn.Linear(6, 5)]).double()
    inputs = [torch.randn(N, 6, dtype=torch.float64) for _ in "ab"]
    scale = nn.Parameter(torch.tensor([1.3], dtype=torch.float64))
    logit_bias = None if bias is None else nn.Parameter(torch.tensor([bias], dtype=torch.float64))
    parameters = [*towers.parameters(), scale, *([] if bias is None else [logit_bias])]

    def encode(rows: slice) -> Paired:
        image, text = (F.normalize(tower(x[rows]), dim=-1) for tower, x in zip(towers, inputs, strict=True))
        return Paired(image, text, scale, logit_bias)

    def part(rows: slice) -> Batch:
        return Batch(("",) * len(range(N)[rows]), keys(N)[rows], matched_B=torch.tensor(MATCHED)[rows])

    whole = objective(encode(slice(None)), part(slice(None)))
    wanted = torch.autograd.grad(whole.sum / whole.count, parameters)
    slices = [slice(i, i + 3) for i in range(0, N, 3)]
    with torch.no_grad():
        cached = [objective.features(encode(rows), part(rows)) for rows in slices]
    leaves = [torch.cat(parts).requires_grad_() for parts in zip(*cached, strict=True)]
    score = objective.loss_from_features(*leaves, logit_scale=scale, logit_bias=logit_bias)
    assert score.count == sum(objective.count(part(rows)) for rows in slices)
    assert not score.count.requires_grad
    (score.sum / score.count).backward()
    for rows in slices:
        features = objective.features(encode(rows), part(rows))
        torch.autograd.backward(features[:2], [leaf.grad[rows] for leaf in leaves[:2]])
    for p, g in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(p.grad, g, atol=1e-13, rtol=1e-12)


def test_losses_stay_in_fp32_under_autocast():
    for objective, bias in ((Contrastive(), None), (Sigmoid(), -2.0)):
        hidden = paired(bias, dtype=torch.float32)
        plain = objective(hidden, pairs())
        with torch.autocast("cpu", torch.bfloat16):
            under = objective(hidden, pairs())
        assert torch.equal(plain.sum, under.sum) and under.sum.dtype == torch.float32
        half = objective(Paired(*(x if x is None else x.detach().bfloat16() for x in hidden[:4])), pairs())
        assert half.sum.dtype == torch.float32


def test_scale_is_clamped_after_the_step():
    model = nn.Module()
    for objective in (Contrastive(), Sigmoid()):
        for start, end in ((9.0, 4.6052), (-1.0, 0.0), (2.0, 2.0)):
            model.logit_scale = nn.Parameter(torch.tensor([start]))
            objective.after_step(model)
            assert model.logit_scale.item() == pytest.approx(end) and model.logit_scale.requires_grad
    model.logit_scale = nn.Parameter(torch.tensor([9.0]))
    Contrastive(scale_bounds=None).after_step(model)
    assert model.logit_scale.item() == 9
    with pytest.raises(ValueError, match="logit_scale"):
        Contrastive().after_step(nn.Linear(1, 1))


def test_start_bias_that_the_docs_name_is_the_best_for_features_without_meaning():
    n = 64
    features = torch.zeros(n, 5, dtype=torch.float64)
    loss = lambda bias: Sigmoid().loss_from_features(features, features, logit_scale=torch.zeros(1), logit_bias=torch.tensor([bias])).sum
    best = -math.log(n - 1)
    assert loss(best) < loss(best - 0.01) and loss(best) < loss(best + 0.01)


def test_objectives_can_be_copied_also_with_a_group():
    objective = Contrastive()
    objective.use_group(object())  # stands for a process group, which cannot be copied
    assert copy.deepcopy(objective).peers is objective.peers


def test_clear_errors():
    with pytest.raises(ValueError, match="allow_biased"):
        Contrastive("local_no_grad")
    assert Contrastive("local_no_grad", allow_biased=True).gather == "local_no_grad"
    with pytest.raises(ValueError, match="unknown gather"):
        Contrastive("no_grad")
    with pytest.raises(ValueError, match="unknown exchange"):
        Sigmoid("reduce")
    with pytest.raises(ValueError, match="no logit bias"):
        Sigmoid()(paired(), pairs())
    with pytest.raises(ValueError, match="cannot train a logit bias"):
        Contrastive()(paired(bias=0.0), pairs())
    with pytest.raises(ValueError, match="needs the batch"):
        Contrastive().features(paired())
    with pytest.raises(ValueError, match="image and text"):
        Contrastive()(paired()._replace(text_BE=None), pairs())
    with pytest.raises(ValueError, match="scale_bounds"):
        Contrastive(scale_bounds=(1, 0))
    with pytest.raises(ValueError, match="kind 'paired'"):
        Contrastive().bind(spec(kinds=("fused",)), None)
