"""IPOT against loops in NumPy, masks, and WPA on hand-made states."""

import numpy as np
import pytest
import torch
from helpers.objectives import batch_of, example, fused, keys, spec

from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.objectives.transport import ipot
from mmpretrain.objectives.wpa import LEAST, WPA
from mmpretrain.types import Batch


def plan_by_loops(cost: np.ndarray, beta: float, iterations: int, inner: int = 1) -> np.ndarray:
    """IPOT as printed in arXiv 1802.04307, algorithm 1, one sample at a time, float64."""
    m, n = cost.shape
    plan, sigma, kernel = np.ones((m, n)), np.full(m, 1 / m), np.exp(-cost / beta)
    for _ in range(iterations):
        q = kernel * plan
        for _ in range(inner):
            delta = 1 / (n * (q.T @ sigma))
            sigma = 1 / (m * (q @ delta))
        plan = sigma[:, None] * q * delta[None, :]
    return plan


def exact_cost(cost: np.ndarray) -> float:
    """Optimal transport between uniform marginals of equal size is an assignment: try them all."""
    from itertools import permutations

    n = len(cost)
    return min(sum(cost[i, p[i]] for i in range(n)) for p in permutations(range(n))) / n


SIZES = ((3, 4), (1, 6), (5, 1), (2, 2), (5, 6))


def padded(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    cost = torch.rand(len(SIZES), 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(2).to(dtype)
    rows = torch.tensor([[i < t for i in range(5)] for t, _ in SIZES])
    columns = torch.tensor([[i < v for i in range(6)] for _, v in SIZES])
    return cost, rows, columns


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("beta, iterations, inner", [(0.5, 50, 1), (0.5, 1, 1), (0.1, 20, 2)])
def test_plan_equals_loops(dtype, tolerance, beta, iterations, inner):
    cost, rows, columns = padded(dtype)
    plan = ipot(cost, rows, columns, beta, iterations, inner)
    for i, (t, v) in enumerate(SIZES):
        wanted = plan_by_loops(cost[i, :t, :v].double().numpy(), beta, iterations, inner)
        np.testing.assert_allclose(plan[i, :t, :v].numpy(), wanted, atol=tolerance)
        np.testing.assert_allclose(plan[i, :t].sum(1).numpy(), 1 / t, rtol=1e-5)
    assert not plan.masked_select(~(rows[:, :, None] & columns[:, None, :])).any()


def test_long_run_reaches_the_optimum():
    cost = torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    plan = ipot(cost, torch.ones(4, 5, dtype=torch.bool), torch.ones(4, 5, dtype=torch.bool), beta=0.5, iterations=2000)
    for i in range(4):
        assert (plan[i] * cost[i]).sum().item() == pytest.approx(exact_cost(cost[i].numpy()), abs=1e-3)
    np.testing.assert_allclose(plan.sum(1).numpy(), 0.2, atol=1e-3)


def test_samples_without_words_or_patches_have_no_plan_and_no_nan():
    cost = torch.rand(3, 2, 2)
    rows, columns = torch.tensor([[False, False], [True, True], [True, False]]), torch.tensor([[True, True], [False, False], [True, True]])
    plan = ipot(cost, rows, columns)
    assert plan.isfinite().all() and not plan[:2].any() and plan[2].sum().item() == pytest.approx(1)


LENGTHS, PATCHES = (6, 2, 9, 4), (5, 5, 3, 8)  # with [CLS] and [SEP]; with one image token that is no patch


def by_hand(hidden, i: int, prefix: int) -> tuple[np.ndarray, np.ndarray]:
    text, image = (x.x_ND.detach().double().numpy()[s : s + n] for x, s, n in (
        (hidden.text, sum(LENGTHS[:i]), LENGTHS[i]), (hidden.image, sum(PATCHES[:i]), PATCHES[i])))  # fmt: skip
    text, image = text[1:-1], image[prefix:]
    cost = 1 - (text / np.linalg.norm(text, axis=1, keepdims=True)) @ (image / np.linalg.norm(image, axis=1, keepdims=True)).T
    return cost, plan_by_loops(cost, 0.5, 50) if len(text) else np.zeros_like(cost)


def matched_batch(matched: list[bool]) -> Batch:
    return Batch(tuple("abcd"), keys(4), matched_B=torch.tensor(matched))


@pytest.mark.parametrize("prefix", [0, 1])
def test_loss_and_plan_against_numpy(prefix):
    hidden, batch = fused(LENGTHS, PATCHES, prefix), matched_batch([True, True, False, True])
    objective = WPA()
    score = objective(hidden, batch)
    distances = [float((cost * plan).sum()) for cost, plan in (by_hand(hidden, i, prefix) for i in range(4))]
    assert distances[1] == 0  # only [CLS] and [SEP]
    assert score.sum.item() == pytest.approx(distances[0] + distances[1] - distances[2] + distances[3], rel=1e-4)
    assert score.count.item() == 4
    assert score.stats["distance_unmatched"][0].item() == pytest.approx(distances[2], rel=1e-4)
    assert score.stats["distance_matched"][1].item() == 3
    for i, plan in enumerate(objective.plan(hidden)):
        assert plan.shape == (LENGTHS[i] - 2, PATCHES[i] - prefix)
        np.testing.assert_allclose(plan.numpy(), by_hand(hidden, i, prefix)[1], atol=1e-4)


def test_gradient_flows_through_the_cost_only_and_skips_what_is_left_out():
    hidden, batch = fused(LENGTHS, PATCHES, dtype=torch.float64), matched_batch([True, False, False, True])
    for states in (hidden.text, hidden.image):
        states.x_ND.requires_grad_()
    WPA()(hidden, batch).sum.backward()
    plans = WPA().plan(hidden)
    leaf = hidden.text.x_ND.detach().clone().requires_grad_()
    total, start = 0, 0
    for i, n in enumerate(LENGTHS):
        image = hidden.image.x_ND.detach()[sum(PATCHES[:i]) + 1 : sum(PATCHES[: i + 1])]
        cost = 1 - torch.cosine_similarity(leaf[start + 1 : start + n - 1, None], image[None], dim=-1)
        total, start = total + (cost * plans[i]).sum() * (1 if i in (0, 3) else -1), start + n
    total.backward()
    torch.testing.assert_close(hidden.text.x_ND.grad, leaf.grad, atol=1e-10, rtol=1e-10)
    starts = hidden.text.layout.starts
    assert not hidden.text.x_ND.grad[starts[:-1]].any() and not hidden.text.x_ND.grad[starts[1:] - 1].any()
    assert not hidden.image.x_ND.grad[hidden.image.layout.starts[:-1]].any() and hidden.image.x_ND.grad.isfinite().all()


def test_autocast_does_not_change_it():
    hidden, batch = fused(LENGTHS, PATCHES), matched_batch([True, False, True, True])
    plain = WPA()(hidden, batch)
    with torch.autocast("cpu", torch.bfloat16):
        under = WPA()(hidden, batch)
        plans = WPA().plan(hidden)
    assert torch.equal(plain.sum, under.sum) and under.sum.dtype == torch.float32 and plans[0].dtype == torch.float32


def test_the_smallest_step_has_a_plan_for_the_largest_costs():
    cost = 2 * torch.tensor([[[0.0, 1, 1], [1, 1, 0], [1, 1, 1]]])  # a row and a column of nothing but the largest
    rows = columns = torch.ones(1, 3, dtype=torch.bool)
    plan = ipot(cost, rows, columns, LEAST)
    assert plan.isfinite().all() and plan.sum() == pytest.approx(1)
    assert not ipot(cost, rows, columns, 0.01).isfinite().all()


def test_clear_errors():
    for beta in (0, 0.01):
        with pytest.raises(ValueError, match="beta"):
            WPA(beta=beta)
    with pytest.raises(ValueError, match="view of ITM"):
        WPA()(fused(LENGTHS, PATCHES), matched_batch([True] * 4)._replace(matched_B=None))
    with pytest.raises(ValueError, match="text and image"):
        WPA()(fused(LENGTHS, PATCHES)._replace(image=None), matched_batch([True] * 4))
    with pytest.raises(ValueError, match="kind"):
        WPA().bind(spec(kinds=("paired",)), None)
    assert WPA().count(batch_of([example(i) for i in range(3)])).item() == 3


def test_special_tokens_take_part_where_asked():
    """UNITER's transport includes [CLS] and [SEP]; what is shown of it does not."""
    hidden, batch = fused(LENGTHS, PATCHES, prefix=0), matched_batch([True, False, True, True])
    objective = WPA(special=True)
    score, signs, total = objective(hidden, batch), (1, -1, 1, 1), 0.0
    for i, plan in enumerate(objective.plan(hidden)):
        text, image = (x.pad()[i, :n].double().numpy() for x, n in ((hidden.text, LENGTHS[i]), (hidden.image, PATCHES[i])))
        cost = 1 - (text / np.linalg.norm(text, axis=1, keepdims=True)) @ (image / np.linalg.norm(image, axis=1, keepdims=True)).T
        wanted = plan_by_loops(cost, 0.5, 50)
        total += signs[i] * float((cost * wanted).sum())
        np.testing.assert_allclose(plan.numpy(), wanted[1:-1], atol=1e-4)
    assert score.sum.item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("regions, wanted", [(4, 0.6131516), (3, 0.4733899)])
def test_distance_of_the_official_code(regions, wanted):
    """What UNITER's released routine (1dbfa62, its masks made bool) gives for these sines and cosines; 3: the 4th region is padding."""
    text = torch.sin(0.37 * torch.arange(24.0)).view(3, 8)
    image = torch.cos(0.53 * torch.arange(32.0)).view(4, 8)
    more = torch.ones(2, 8)  # a sample with more regions, so that the first one is padded
    layout = Layout((regions, 5))
    hidden = Fused(Ragged(torch.cat([text, more]), Layout((3, 2))), Ragged(torch.cat([image[:regions], torch.ones(5, 8)]), layout), None)
    score = WPA(special=True)(hidden, Batch(("a", "b"), keys(2), matched_B=torch.tensor([True, False])))
    assert score.stats["distance_matched"][0].item() == pytest.approx(wanted, abs=2e-5)
    assert score.stats["distance_unmatched"][0].item() == pytest.approx(0, abs=1e-5)  # all states of the second sample are alike
