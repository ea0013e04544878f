"""Ranks and recalls against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mmpretrain.evaluate.ranking import chance_recall, dense_standing, miss_complement, standings


def brute_force(scores: np.ndarray, right: np.ndarray, k: int) -> tuple[float, float]:
    """Recall at k and rank of the first match, averaged over all orders of the candidates with stable sorting."""
    orders = list(itertools.permutations(range(len(scores))))
    hits, ranks = 0, 0
    for order in orders:
        ranked = sorted(order, key=lambda c: -scores[c])
        first = next(i for i, c in enumerate(ranked) if right[c])
        hits, ranks = hits + (first < k), ranks + first + 1
    return hits / len(orders), ranks / len(orders)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_ties_are_the_mean_over_all_orders(k: int) -> None:
    rng = np.random.default_rng(k)
    scores, right = rng.integers(0, 3, (20, 6)).astype(np.float32), rng.random((20, 6)) < 0.4
    right[np.arange(20), rng.integers(0, 6, 20)] = True
    found = dense_standing(torch.from_numpy(scores), torch.from_numpy(right), 1e-6)
    expected = np.array([brute_force(s, r, k) for s, r in zip(scores, right, strict=True)])
    np.testing.assert_allclose(found.recall(k), expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(found.rank(), expected[:, 1], atol=1e-12)


@pytest.mark.parametrize("block_rows", [1, 3, 100])
def test_blocks_equal_numpy(block_rows: int) -> None:
    rng = np.random.default_rng(0)
    owner = np.sort(np.concatenate([np.arange(17), rng.integers(0, 17, 30)]))
    scores = rng.standard_normal((17, len(owner))).astype(np.float32)
    own = torch.from_numpy(scores[owner, np.arange(len(owner))])
    matrix = torch.from_numpy(scores)
    i2t, t2i = standings(own, torch.from_numpy(owner), 17, lambda rows: matrix[rows], block_rows, 1e-7)
    for k in (1, 5, 10):
        by_image = [np.isin(np.argsort(-scores[i])[:k], np.flatnonzero(owner == i)).any() for i in range(17)]
        by_text = [owner[t] in np.argsort(-scores[:, t])[:k] for t in range(len(owner))]
        np.testing.assert_array_equal(i2t.recall(k), np.array(by_image, float))
        np.testing.assert_array_equal(t2i.recall(k), np.array(by_text, float))
    ranks = [1 + (scores[:, t] > scores[owner[t], t]).sum() for t in range(len(owner))]
    np.testing.assert_array_equal(t2i.rank(), np.array(ranks, float))


@pytest.mark.parametrize("k", [1, 5, 10])
def test_equal_scores_give_exactly_chance(k: int) -> None:
    owner = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    i2t, t2i = standings(torch.ones(15), owner, 12, lambda rows: torch.ones(rows.stop - rows.start, 15), 5, 1e-6)
    assert i2t.recall(k).mean() == pytest.approx(chance_recall(np.bincount(owner), 15, k), abs=1e-12)
    assert t2i.recall(k).mean() == pytest.approx(k / 12, abs=1e-12)


def test_chance_with_several_captions_is_the_hypergeometric_one() -> None:
    draws = [any(c < 5 for c in order) for order in itertools.permutations(range(7), 2)]
    assert chance_recall([5], 7, 2) == pytest.approx(np.mean(draws))
    assert miss_complement(np.array(0), np.array(1), np.array(0)) == 0.0
    assert miss_complement(np.array(3), np.array(1), np.array(4)) == 1.0


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        standings(torch.tensor([0.0, float("nan")]), torch.tensor([0, 1]), 2, lambda rows: torch.zeros(2, 2), 2, 0.0)
    with pytest.raises(ValueError, match="not finite"):
        dense_standing(torch.tensor([[0.0, float("inf")]]), torch.tensor([[True, False]]), 0.0)
