"""Ranks and recalls with exact treatment of ties and of several matches per query.

Ties. A query's recall at K is the *expected* recall when candidates of equal score are put in random order. A scorer that gives every
pair the same score therefore gets exactly the chance level, never 100 %, and no order of the data can help it. Scores closer than a
tolerance count as equal, because the same pair computed in two batches of different shape differs by rounding.

With ``greater`` wrong candidates above the best match and a tied group of ``matches`` right and ``equal`` wrong candidates::

    P(hit at K) = 1 - C(equal, s) / C(equal + matches, s),   s = min(K - greater, equal + matches)
    E(rank)     = greater + (equal + matches + 1) / (matches + 1)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Standing(NamedTuple):
    """Where the best match of each of Q queries stands among the candidates; int64 (Q,) each."""

    greater: np.ndarray  # wrong candidates that score higher than the best match
    equal: np.ndarray  # wrong candidates that tie with it
    matches: np.ndarray  # right candidates that tie with it, itself included; at least 1

    def recall(self, k: int) -> np.ndarray:
        """Expected recall at ``k`` of each query: float64 (Q,)."""
        return miss_complement(self.equal, self.matches, k - self.greater)

    def rank(self) -> np.ndarray:
        """Expected rank of the best match, 1 is first: float64 (Q,)."""
        return self.greater + (self.equal + self.matches + 1.0) / (self.matches + 1.0)


def miss_complement(wrong: np.ndarray, right: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Probability that ``draws`` of ``wrong + right`` candidates, drawn without replacement, hold at least one right one: float64.

    All arguments broadcast; ``draws`` below 1 gives 0, ``draws`` above ``wrong`` gives 1.
    """
    wrong, right, draws = np.broadcast_arrays(*(np.asarray(x, dtype=np.int64) for x in (wrong, right, draws)))
    miss = np.ones(wrong.shape)
    steps = int(np.minimum(draws, wrong + 1).max(initial=0))
    for j in range(steps):  # the j-th draw misses with probability (wrong - j) / (wrong + right - j)
        ratio = np.clip(wrong - j, 0, None) / np.clip(wrong + right - j, 1, None)
        miss = np.where(j < draws, miss * ratio, miss)
    return 1.0 - miss


def chance_recall(matches: Sequence[int] | np.ndarray, candidates: int, k: int) -> float:
    """Recall at ``k`` of a random order, averaged over queries that have ``matches`` right ones among ``candidates``."""
    matches = np.asarray(matches, dtype=np.int64)
    return float(miss_complement(candidates - matches, matches, np.full_like(matches, k)).mean())


class _Columns:
    """Counts over one side, filled block by block."""

    def __init__(self, best: Tensor, matches: Tensor, tolerance: float) -> None:
        self.best, self.matches, self.tolerance = best, matches, tolerance
        self.greater, self.equal = torch.zeros_like(matches), torch.zeros_like(matches)

    def add(self, rows: slice, scores_QC: Tensor, own_QC: Tensor) -> None:
        """Count the wrong candidates of a block. ``scores_QC``: queries ``rows`` against some candidates."""
        difference = (scores_QC - self.best[rows, None]).masked_fill(own_QC, -torch.inf)
        self.greater[rows] += (difference > self.tolerance).sum(dim=1)
        self.equal[rows] += (difference.abs() <= self.tolerance).sum(dim=1)

    def standing(self) -> Standing:
        return Standing(self.greater.numpy(), self.equal.numpy(), self.matches.numpy())


def _best_matches(own_P: Tensor, query_P: Tensor, queries: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Highest score of each query's own pairs (Q,), and how many of them tie with it (Q,)."""
    best = torch.full((queries,), -torch.inf, dtype=own_P.dtype).scatter_reduce_(0, query_P, own_P, "amax")
    ties = (own_P >= best[query_P] - tolerance).long()
    return best, torch.zeros(queries, dtype=torch.int64).scatter_add_(0, query_P, ties)


def standings(
    own_P: Tensor,
    image_P: Tensor,
    images: int,
    block: Callable[[slice], Tensor],
    block_rows: int,
    tolerance: float,
) -> tuple[Standing, Standing]:
    """Standings of image-to-text and text-to-image retrieval, in memory of one block of rows.

    Text p belongs to image ``image_P[p]``; every image has at least one text.

    Args:
        own_P: score of each text with its own image, float (P,) on the CPU.
        image_P: image of each text, int64 (P,).
        images: number of images.
        block: scores of a slice of images against all texts, float (rows, P) on the CPU. Called once per block, in order.
        block_rows: images per block.
        tolerance: scores that differ by no more than this tie.

    Raises:
        ValueError: a score is not a number.
    """
    if not bool(torch.isfinite(own_P).all()):
        raise ValueError("retrieval: the model gives scores that are not finite; nothing can be ranked")
    texts = own_P.numel()
    best_I, ties_I = _best_matches(own_P, image_P, images, tolerance)
    by_image = _Columns(best_I, ties_I, tolerance)
    by_text = _Columns(own_P, torch.ones(texts, dtype=torch.int64), tolerance)
    everything = slice(0, texts)
    for start in range(0, images, block_rows):
        rows = slice(start, min(start + block_rows, images))
        scores = block(rows)
        if not bool(torch.isfinite(scores).all()):
            raise ValueError("retrieval: the model gives scores that are not finite; nothing can be ranked")
        own = image_P[None, :] == torch.arange(rows.start, rows.stop)[:, None]
        by_image.add(rows, scores, own)
        by_text.add(everything, scores.T, own.T)
    return by_image.standing(), by_text.standing()


def dense_standing(scores_QC: Tensor, right_QC: Tensor, tolerance: float) -> Standing:
    """Standings of Q queries over C candidates that are few enough to hold in one matrix.

    Args:
        scores_QC: float (Q, C).
        right_QC: bool (Q, C), at least one True in each row.
        tolerance: scores that differ by no more than this tie.
    """
    if not bool(torch.isfinite(scores_QC).all()):
        raise ValueError("the model gives scores that are not finite; nothing can be ranked")
    best_Q1 = scores_QC.masked_fill(~right_QC, -torch.inf).amax(dim=1, keepdim=True)
    difference = scores_QC - best_Q1
    tied = difference.abs() <= tolerance
    greater = ((difference > tolerance) & ~right_QC).sum(dim=1)
    return Standing(greater.numpy(), (tied & ~right_QC).sum(dim=1).numpy(), (tied & right_QC).sum(dim=1).numpy())
