"""Re-ranking is argsort of the scores, whatever the scorer and the chunks; a CLIP scores by its cosines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import checkpoint
from torch import Tensor

from mmpretrain.evaluate.loading import load
from mmpretrain.generate.rerank import ClipScorer, ranking, rerank


def pictures(n: int, side: int = 20) -> list[Tensor]:
    return list(torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


class Stub:
    """Scores by a table, in the order in which pictures come; keeps the sizes of what it was given."""

    def __init__(self, scores: Sequence[float]) -> None:
        self.left, self.sizes, self.prompts = list(scores), [], set()

    def __call__(self, pictures: Sequence[Tensor], prompt: str) -> Tensor:
        self.sizes.append(len(pictures))
        self.prompts.add(prompt)
        part, self.left = self.left[: len(pictures)], self.left[len(pictures) :]
        return torch.tensor(part)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_the_order_is_argsort(chunk):
    scores = np.random.default_rng(0).normal(size=17).astype(np.float32)
    stub = Stub(scores.tolist())
    found = rerank(pictures(17), "a red circle", stub, chunk)
    assert found.order_N.tolist() == np.argsort(-scores, kind="stable").tolist()
    assert np.array_equal(found.scores_N.numpy(), scores) and stub.prompts == {"a red circle"}
    assert max(stub.sizes) == min(chunk, 17) and sum(stub.sizes) == 17


def test_equal_scores_stay_in_order():
    assert rerank(pictures(6), "x", Stub([1.0, 2.0, 1.0, 2.0, 1.0, 3.0])).order_N.tolist() == [5, 1, 3, 0, 2, 4]


def test_wrong_scorers_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 1\) for 2 pictures"):
        rerank(pictures(2), "x", lambda given, _: torch.zeros(len(given), 1))
    with pytest.raises(ValueError, match="not finite"):
        ranking(torch.tensor([1.0, torch.nan]))
    with pytest.raises(ValueError, match="chunk=0"):
        rerank(pictures(2), "x", Stub([0.0, 1.0]), 0)
    assert rerank([], "x", Stub([])).order_N.tolist() == []


def test_clip_scores_are_cosines(tmp_path: Path):
    clip = load(checkpoint(tmp_path / "clip.ckpt", "clip"))
    given = pictures(5)
    found = rerank(given, "a red cube", ClipScorer(clip), 2)
    torch.testing.assert_close(found.scores_N, clip.score(given, ["a red cube"], mode="matrix")[:, 0])
    assert found.order_N.tolist() == np.argsort(-found.scores_N.numpy(), kind="stable").tolist()


def test_only_dual_encoders_rank(tmp_path: Path):
    with pytest.raises(ValueError, match=r"vilt\.ckpt.*takes a dual encoder .*gives fused"):
        ClipScorer(load(checkpoint(tmp_path / "vilt.ckpt", "vilt")))
