"""ELBO and commitment: the likelihood is one, the KL has its ends, the published normalisation, statistics over whole steps, layouts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import code_ranks
from helpers.objectives import keys
from helpers.plain_dvae import batch, rows, small
from train.spawn import ranks

from mmpretrain.models.dvae import pictures
from mmpretrain.nn.dvae import map_pixels, unit_pixels
from mmpretrain.nn.hidden import Coded
from mmpretrain.objectives.commitment import Commitment
from mmpretrain.objectives.elbo import ELBO, kl_to_uniform, logit_laplace, perplexity
from mmpretrain.types import Batch, Spec

CODED = Spec(4, ("coded",), 0, codes=8, code_grid=(2, 2))


def hidden(n: int = 3, codes: int = 8, size: int = 4, seed: int = 0) -> Coded:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, codes, 2, 2, generator=generator, dtype=torch.float64)
    output = torch.randn(n, 6, size, size, generator=generator, dtype=torch.float64)
    pixels = torch.rand(n, 3, size, size, generator=generator, dtype=torch.float64)
    return Coded(logits.requires_grad_(), None, output.requires_grad_(), pixels)


def blank(n: int = 3) -> Batch:
    return Batch(("",) * n, keys(n))


@pytest.mark.parametrize(("mu", "log_b"), [(0.0, 0.0), (1.5, -1.0), (-2.0, 0.5), (0.3, -2.5)])
def test_the_likelihood_integrates_to_one(mu, log_b):
    edges = torch.linspace(-40, 40, 400_001, dtype=torch.float64).sigmoid()  # fine where the density is steep
    x, width = (edges[1:] + edges[:-1]) / 2, edges.diff()
    inside = (x > 0) & (x < 1)
    density = (-logit_laplace(x[inside], torch.tensor(mu), torch.tensor(log_b))).exp()
    assert (density * width[inside]).sum().item() == pytest.approx(1.0, abs=1e-4)


def test_the_likelihood_is_that_of_equation_2():
    x, mu, b = 0.3, 0.7, 1.7
    wanted = 1 / (2 * b * x * (1 - x)) * math.exp(-abs(math.log(x / (1 - x)) - mu) / b)
    found = logit_laplace(torch.tensor(x, dtype=torch.float64), torch.tensor(mu), torch.tensor(b, dtype=torch.float64).log())
    assert found.item() == pytest.approx(-math.log(wanted), rel=1e-6)


def test_the_kl_is_nothing_for_equal_logits_and_log_k_for_a_certain_code():
    flat = torch.full((2, 8, 3, 3), 1.7)
    torch.testing.assert_close(kl_to_uniform(flat), torch.zeros(2, 3, 3), atol=1e-6, rtol=0)
    certain = flat.clone()
    certain[:, 5] += 100
    torch.testing.assert_close(kl_to_uniform(certain), torch.full((2, 3, 3), math.log(8)))
    q = torch.randn(1, 8, 1, 1).softmax(1)
    torch.testing.assert_close(kl_to_uniform(q.log()).item(), float((q * (q * 8).log()).sum()), atol=1e-6, rtol=1e-6)


def test_the_loss_is_the_published_one():
    given = hidden()
    score = ELBO(kl_weight=6.6)(given, blank())
    x, mu, log_b = map_pixels(given.pixels_BCHW), given.output_BCHW[:, :3], given.output_BCHW[:, 3:]
    nll_B = logit_laplace(x, mu, log_b).sum((1, 2, 3))
    kl_B = kl_to_uniform(given.logits_BKhw).sum((1, 2))
    torch.testing.assert_close(score.sum, ((nll_B + 6.6 * kl_B) / (3 * 4 * 4)).sum())
    assert score.count.item() == ELBO().count(blank()).item() == 3
    kl = score.stats["kl"][0] / 3
    torch.testing.assert_close(kl, kl_B.mean() / 4)
    # a picture of 256 x 256 with 32 x 32 positions: beta / 192 of the mean over positions
    big = Coded(torch.zeros(1, 2, 32, 32), None, torch.zeros(1, 6, 256, 256), torch.full((1, 3, 256, 256), 0.5))
    logits = torch.zeros(1, 2, 32, 32)
    logits[:, 0] = 3.0
    without, withal = (ELBO(kl_weight=6.6)(big._replace(logits_BKhw=one), blank(1)).sum for one in (big.logits_BKhw, logits))
    torch.testing.assert_close(withal - without, 6.6 / 192 * kl_to_uniform(logits).mean(), atol=1e-6, rtol=1e-4)


def test_the_temperature_of_the_sample_is_no_business_of_the_kl():
    model, given = small().train(), batch()
    found = []
    for model.temperature in (1.0, 0.1):
        found.append(ELBO()(model(given), given).stats["kl"][0])
    assert torch.equal(*found)


def test_statistics_of_the_picture():
    model, given = small(), batch()
    made = model(given)
    stats = ELBO()(made, given).stats
    errors = (pictures(made.output_BCHW) - unit_pixels(given.image)).square().mean((1, 2, 3))
    torch.testing.assert_close(stats["mse"][0] / 5, errors.mean(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(stats["psnr"][0] / 5, (-10 * errors.log10()).mean(), atol=1e-4, rtol=1e-5)
    perfect = made._replace(output_BCHW=torch.cat((map_pixels(made.pixels_BCHW).logit(),) * 2, 1))
    assert ELBO()(perfect, given).stats["psnr"][0].item() / 5 == pytest.approx(100, abs=1)


@pytest.mark.parametrize(("likelihood", "power"), [("mse", 2), ("l1", 1)])
def test_plain_errors_are_options_and_have_gradients_outside_the_picture_too(likelihood, power):
    given = hidden()
    given = given._replace(output_BCHW=(given.output_BCHW.detach() * 4).requires_grad_())
    score = ELBO(likelihood, kl_weight=0.0)(given, blank())
    middle = (given.output_BCHW[:, :3].sigmoid() - 0.1) / 0.8
    wanted = (middle - given.pixels_BCHW).abs().pow(power).mean((1, 2, 3)).sum()
    torch.testing.assert_close(score.sum, wanted)
    (grad,) = torch.autograd.grad(score.sum, given.output_BCHW)
    assert (grad[:, :3] != 0).all() and not grad[:, 3:].any()


def test_codes_in_use_are_those_of_all_since_the_last_call():
    objective, given = ELBO(), hidden(n=6)
    ids = given.logits_BKhw.argmax(1)
    for part in (slice(0, 2), slice(2, 6)):
        cut = Coded(given.logits_BKhw[part], None, given.output_BCHW[part], given.pixels_BCHW[part])
        objective(cut, blank(len(cut.logits_BKhw)))
    seen = np.bincount(ids.flatten().numpy(), minlength=8)
    share = seen[seen > 0] / seen.sum()
    found = objective.pooled()
    assert found["perplexity"][0].item() == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-5)
    assert found["usage"][0].item() == pytest.approx((seen > 0).mean()) and objective.pooled() == {}
    assert perplexity(torch.tensor([4, 4, 0, 4])).item() == pytest.approx(3) and perplexity(torch.tensor([0, 7])).item() == pytest.approx(1)


def test_half_precision_of_the_model_does_not_reach_the_loss():
    given = hidden()
    rough = Coded(given.logits_BKhw.float(), None, given.output_BCHW.bfloat16(), given.pixels_BCHW.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ELBO()(rough, blank()).sum
    exact = ELBO()(given._replace(output_BCHW=rough.output_BCHW.double()), blank()).sum
    assert found.dtype == torch.float32 and found.item() == pytest.approx(exact.item(), rel=1e-5)


def test_commitment_is_the_distance_to_the_vector_and_its_gradient_goes_to_the_states_alone():
    model, given = small("nearest").train(), batch()
    made, objective = model(given), Commitment()
    z, e = made.aux["state_BDhw"], made.aux["vector_BDhw"]
    score = objective(made, given)
    torch.testing.assert_close(score.sum, (z - e).square().mean((1, 2, 3)).sum())
    assert objective.weight == 0.25 and not e.requires_grad
    (grad,) = torch.autograd.grad(score.sum, z)
    torch.testing.assert_close(grad, 2 * (z - e).detach() / z[0].numel())


def test_the_kl_of_nearest_vectors_is_a_constant():
    model, given = small("nearest").train(), batch()
    score = ELBO()(model(given), given)
    assert (score.stats["kl"][0] / 5).item() == pytest.approx(math.log(10)) and score.sum.requires_grad


def test_vectors_move_by_numpy_after_each_step():
    model, given, objective = small("nearest").train(), batch(), Commitment(restart=0.0)
    made = model(given)
    states = made.aux["state_BDhw"].detach().permute(0, 2, 3, 1).reshape(-1, 6).double().numpy()
    ids = made.logits_BKhw.argmax(1).flatten().numpy()
    wanted = model.codebook.vectors_KD.numpy().copy()
    for code in set(ids.tolist()):  # the first step: the mean of the states
        wanted[code] = states[ids == code].mean(0)
    objective(made, given)
    objective.after_step(model)
    np.testing.assert_allclose(model.codebook.vectors_KD, wanted, rtol=1e-4, atol=1e-5)
    before = model.codebook.vectors_KD.clone()
    objective.after_step(model)  # nothing new
    objective.eval()(model.eval()(given), given)
    objective.after_step(model)
    assert torch.equal(model.codebook.vectors_KD, before)


def test_restarts_are_at_states_of_the_step_whatever_the_micro_batches():
    given, found = batch(), []
    for layout in ([[0, 1, 2, 3, 4]], [[3, 0], [4, 2, 1]]):
        model, objective, states = small("nearest").train(), Commitment(restart=0.9), []
        for order in layout:
            part = rows(given, order)
            made = model(part)
            states.append(made.aux["state_BDhw"].detach().permute(0, 2, 3, 1).reshape(-1, 6))
            objective(made, part)
        objective.after_step(model)
        found.append(model.codebook.vectors_KD.clone())
        assert torch.cdist(found[-1], torch.cat(states)).min(1).values.max() < 1e-4
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="likelihood='l2'; choose one of logit_laplace, mse, l1"):
        ELBO("l2")
    with pytest.raises(ValueError, match="kl_weight=-1"):
        ELBO(kl_weight=-1)
    for one in (ELBO, Commitment):
        with pytest.raises(ValueError, match=f"{one.__name__}: only_if_matched=true has no meaning"):
            one(only_if_matched=True)
    with pytest.raises(ValueError, match="restart=1"):
        Commitment(restart=1)
    with pytest.raises(ValueError, match="the model has no codes"):
        ELBO().bind(CODED._replace(codes=0), None)
    with pytest.raises(ValueError, match="the decoder was not run"):
        ELBO()(hidden()._replace(output_BCHW=None), blank())
    with pytest.raises(ValueError, match=r"no codebook of vectors; set model\.system\.init_args\.sample: nearest"):
        Commitment()(hidden(), blank())


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo, with which the ranks talk")
    out = tmp_path_factory.mktemp("ranks") / "found.pt"
    for rank, done in enumerate(ranks(Path(code_ranks.__file__), str(out))):
        assert done.returncode == 0, f"rank {rank}:\n{done.stdout[-4000:]}"
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("sample", ["relaxed", "nearest"])
def test_two_processes_and_two_micro_batches_equal_one(measured, sample):
    one = code_ranks.steps(code_ranks.root(sample), [[0, 1, 2, 3, 4, 5]])
    two = code_ranks.steps(code_ranks.root(sample), [list(samples) for samples in code_ranks.SAMPLES])
    for other in (two, measured[sample]):
        assert list(other) == list(one) and all(torch.isfinite(value).all() for value in one.values())
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, atol=1e-6, rtol=1e-6, msg=name)
