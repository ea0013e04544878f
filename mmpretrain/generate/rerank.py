"""The pictures of a prompt in the order in which a contrastive model finds that they fit (DALL-E, arXiv 2102.12092 section 2.6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmpretrain.evaluate.pretrained import Pretrained

CHUNK = 64  # pictures that are scored at a time

Scorer = Callable[[Sequence[Tensor], str], Tensor]  # (pictures uint8 (3, H, W), prompt) -> (n,), higher fits better


class Ranking(NamedTuple):
    """Scores of the pictures as they were drawn, and their order, best first."""

    scores_N: Tensor  # float32
    order_N: Tensor  # int64


def ranking(scores_N: Tensor) -> Ranking:
    """The order of scores, best first; equal ones stay in the order of drawing.

    Raises:
        ValueError: a score that is not finite.
    """
    if not bool(torch.isfinite(scores_N).all()):
        raise ValueError("re-ranking: the scorer gives scores that are not finite")
    scores_N = scores_N.detach().float().cpu()
    return Ranking(scores_N, scores_N.argsort(descending=True, stable=True))


def rerank(pictures: Sequence[Tensor], prompt: str, scorer: Scorer, chunk: int = CHUNK) -> Ranking:
    """Score n pictures for one prompt, ``chunk`` at a time.

    Args:
        pictures: uint8 (3, H, W) each.
        scorer: see ``Scorer``.

    Raises:
        ValueError: a chunk of none, a scorer that does not give one score for each picture, or one that is not finite.
    """
    if chunk < 1:
        raise ValueError(f"re-ranking: chunk={chunk} must be at least 1")
    parts = []
    for start in range(0, len(pictures), chunk):
        part = pictures[start : start + chunk]
        found = scorer(part, prompt)
        if found.shape != (len(part),):
            raise ValueError(f"re-ranking: the scorer gives scores of shape {tuple(found.shape)} for {len(part)} pictures")
        parts.append(found.detach().float().cpu())
    return ranking(torch.cat(parts) if parts else torch.zeros(0))


class ClipScorer:
    """Cosines of pictures and a prompt by a dual encoder of this suite.

    Args:
        pretrained: with picture and text.

    Raises:
        ValueError: it is no dual encoder, or reads regions or no text.
    """

    def __init__(self, pretrained: Pretrained) -> None:
        if not pretrained.dual:
            raise ValueError(
                f"{pretrained.named}: re-ranking takes a dual encoder (CLIP, SigLIP), and this checkpoint gives "
                f"{', '.join(pretrained.model.spec.kinds)} states; name one trained with clip.yaml"
            )
        if pretrained.shown.show != "image":
            raise ValueError(f"{pretrained.named}: it reads regions, which generated pictures do not have; name a CLIP over pictures")
        if pretrained.tokenizer is None or pretrained.image_transform is None:
            raise ValueError(f"{pretrained.named}: re-ranking needs a checkpoint with a tokenizer and an image transform")
        self.pretrained = pretrained

    def __call__(self, pictures: Sequence[Tensor], prompt: str) -> Tensor:
        """(n,) cosines, float32."""
        text_E = self.pretrained.encode_text([prompt])[0]
        return self.pretrained.encode_image(list(pictures)) @ text_E
