"""Pairwise sigmoid loss (SigLIP, arXiv 2303.15343, section 3.2 and algorithm 1), with texts passed round a ring of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpretrain.objectives.gather import all_rows_with_grad, ring, ring_bidirectional
from mmpretrain.objectives.paired import PairedObjective, add
from mmpretrain.objectives.precision import full_precision, scalar, wide
from mmpretrain.types import Score

Exchange = Literal["ring", "ring_bidirectional", "gather"]


class _Chunk(torch.autograd.Function):
    """-sum_ij c_i logsigmoid(y_ij (s x_i.t_j + b)) of B images against one chunk of texts, and the best logit of each image's wrong texts.

    The gradients are made in the forward, so that no B x B matrix outlives it and a ring needs the memory of one chunk.
    """

    @staticmethod
    def forward(
        ctx: Any, image_BE: Tensor, text_CE: Tensor, scale: Tensor, bias: Tensor, counts_B: Tensor | None, positives: bool
    ) -> tuple[Tensor, Tensor]:
        cosine_BC = image_BE @ text_CE.T
        logits_BC = cosine_BC * scale + bias
        signed_BC = -logits_BC
        if positives:
            signed_BC.diagonal().neg_()
        losses_BC = -F.logsigmoid(signed_BC)
        total = losses_BC.sum() if counts_B is None else (losses_BC.sum(1) * counts_B).sum()
        wrong_BC = logits_BC.detach().clone().fill_diagonal_(-torch.inf) if positives else logits_BC
        best_B = wrong_BC.amax(1)
        if any(ctx.needs_input_grad):
            slope_BC = torch.sigmoid(-signed_BC)  # of the loss by the logit: -y sigmoid(-y z)
            if positives:
                slope_BC.diagonal().neg_()
            if counts_B is not None:
                slope_BC *= counts_B[:, None]
            gradients = (
                scale * (slope_BC @ text_CE),
                scale * (slope_BC.T @ image_BE),
                (slope_BC * cosine_BC).sum().view_as(scale),
                slope_BC.sum().view_as(bias),
            )
            ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(best_B)
        return total, best_B

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*(grad * g for g in ctx.saved_tensors), None, None)


class Sigmoid(PairedObjective):
    """Every image-text pair of the global batch is a binary question: y = 1 for the own text, -1 for all others.

    The sum over the own images is divided by the number of own images (not of pairs). The model must have a ``logit_bias``; the
    paper starts with log-scale ln 10 and bias -10, the best start for batches of about 22,000; for B pairs it is -ln(B - 1).

    Args:
        exchange: ``ring``: texts go round, W - 1 exchanges with neighbours; ``ring_bidirectional``: both ways at once;
            ``gather``: all texts at once. All are exact and equal.
        scale_bounds: OpenCLIP clamps SigLIP's log-scale too; None to leave it free, as in the paper.
        weight, view, after, sources, only_if_matched: see ``PairedObjective``.
    """

    modes: ClassVar[tuple[str, ...]] = get_args(Exchange)

    def __init__(
        self,
        exchange: Exchange = "ring",
        scale_bounds: tuple[float, float] | None = (0.0, 4.6052),
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = True,
    ) -> None:
        super().__init__(scale_bounds, weight=weight, view=view, after=after, sources=sources, only_if_matched=only_if_matched)
        if exchange not in self.modes:
            raise ValueError(f"Sigmoid: unknown exchange={exchange!r}; choose one of {', '.join(self.modes)}")
        self.exchange = exchange

    def loss_from_features(
        self, image_BE: Tensor, text_BE: Tensor, counts_B: Tensor | None = None, *, logit_scale: Tensor, logit_bias: Tensor | None = None
    ) -> Score:
        """Sum over the own images. Stats: ``accuracy`` (the own text has the highest logit), exp(logit_scale) and the bias."""
        if logit_bias is None:
            raise ValueError(f"{self.name}: the model has no logit bias; set its logit_bias_init (the paper: -10)")
        counts_B = None if counts_B is None else counts_B.detach()
        with full_precision(image_BE.device):
            image_BE, text_BE = wide(image_BE), wide(text_BE)
            scale, bias = wide(logit_scale).exp(), wide(logit_bias)
            parts, best_B = [], None
            for positives, text_CE in self._chunks(text_BE):
                part, highest_B = _Chunk.apply(image_BE, text_CE, scale, bias, counts_B, positives)
                best_B = highest_B if best_B is None else torch.maximum(best_B, highest_B)
                parts.append(part)
            with torch.no_grad():
                right_B = ((image_BE * text_BE).sum(1) * scale + bias > best_B).float()
                count = scalar(image_BE.shape[0], image_BE.device) if counts_B is None else counts_B.sum().float()
                right = right_B.sum() if counts_B is None else (right_B * counts_B).sum().float()
        stats = {
            "accuracy": (right, count),
            "logit_scale": (scale.detach().sum().float() * count, count),
            "logit_bias": (bias.detach().sum().float() * count, count),
        }
        return Score(add(parts), count, stats)

    def _chunks(self, text_BE: Tensor) -> Iterator[tuple[bool, Tensor]]:
        """(are the own texts, texts) of every rank, the own ones first. Alone in evaluation."""
        peers, rows = self.peers, text_BE.shape[0]
        yield True, text_BE
        if not self.training or peers.size == 1:
            return
        if self.exchange == "gather":
            for rank, text_CE in enumerate(all_rows_with_grad(text_BE, peers).split(rows)):
                if rank != peers.rank:
                    yield False, text_CE
            return
        for text_CE in (ring if self.exchange == "ring" else ring_bidirectional)(text_BE, peers):
            yield False, text_CE
