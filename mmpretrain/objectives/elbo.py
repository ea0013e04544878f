"""The evidence lower bound of a discrete autoencoder (DALL-E, arXiv 2102.12092, sections 2.1, A.2 and A.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpretrain.nn.dvae import EPSILON, map_pixels
from mmpretrain.nn.hidden import Coded
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.gather import Peers, total
from mmpretrain.objectives.precision import full_precision, scalar, wide
from mmpretrain.types import Batch, Score, Spec, Vocabulary

Likelihood = Literal["logit_laplace", "mse", "l1"]
LEAST = 1e-10  # of a mean squared error, so that a perfect picture has a PSNR: 100 dB


def logit_laplace(x: Tensor, mu: Tensor, log_b: Tensor) -> Tensor:
    """-log f(x | mu, b) of the logit-Laplace distribution on (0, 1), equation 2: what the sigmoid makes of a Laplace variable.

    Args:
        x: in (0, 1); the pixel map keeps it in 0.1 to 0.9.
        mu: middle of the Laplace distribution, on the scale of logits.
        log_b: logarithm of its width.
    """
    return math.log(2) + log_b + x.log() + (1 - x).log() + (x.logit() - mu).abs() * (-log_b).exp()


def kl_to_uniform(logits_BKhw: Tensor) -> Tensor:
    """KL(q || uniform) of every position, (B, h, w), in nats: 0 for equal logits, log K where one code is certain."""
    log_q = F.log_softmax(logits_BKhw, 1)
    return (log_q.exp() * log_q).sum(1) + math.log(logits_BKhw.shape[1])


class ELBO(Objective):
    """Reconstruction and distance to the prior. For each picture of C x H x W values

        [ -sum log p(x | z) + kl_weight * sum_positions KL(q || uniform) ] / (C H W)

    so that the KL term has the weight kl_weight / 192 relative to the mean over positions at the paper's sizes. q is the softmax of the
    encoder's logits, at temperature 1 whatever the temperature of the sample. A model that takes nearest vectors has no such q; its KL is
    the constant log K.

    Statistics: ``reconstruction`` (nats per value of a pixel; the mean error for ``mse`` and ``l1``), ``kl`` (nats per position), ``mse``
    and ``psnr`` (dB) of the unmapped pictures in 0 to 1, the mean over pictures; and over the most probable codes of a whole step or
    evaluation, all ranks together: ``perplexity`` (exp of the entropy of the codes in use) and ``usage`` (share of the codes that occur).

    Args:
        likelihood: ``logit_laplace`` (the paper); ``mse`` or ``l1``: mean squared or absolute error of the picture, for comparisons.
        kl_weight: beta; an attribute, which ``model.phases`` may set.
        weight, view, after, sources: see ``Objective``.
        only_if_matched: false; no text is read.

    Raises:
        ValueError: an unknown likelihood, or a negative weight of the KL.
    """

    kind: ClassVar[str] = "coded"

    def __init__(
        self,
        likelihood: Likelihood = "logit_laplace",
        kl_weight: float = 6.6,
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = False,
    ) -> None:
        super().__init__(weight=weight, view=view, after=after, sources=sources)
        if only_if_matched:
            raise ValueError("ELBO: only_if_matched=true has no meaning, pictures count whatever is said of them; leave it out")
        if likelihood not in get_args(Likelihood):
            raise ValueError(f"ELBO: likelihood={likelihood!r}; choose one of {', '.join(get_args(Likelihood))}")
        if not kl_weight >= 0:
            raise ValueError(f"ELBO: kl_weight={kl_weight} must not be negative")
        self.likelihood, self.kl_weight = likelihood, float(kl_weight)
        self.peers = Peers()
        self._seen_K: Tensor | None = None  # codes since ``pooled`` was asked; not a buffer, which wrappers would equalise

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        """
        Raises:
            ValueError: the model has no codes.
        """
        if not spec.codes:
            raise ValueError(f"{self.name}: the model has no codes; its likelihood is that of a discrete autoencoder")

    def count(self, batch: Batch) -> Tensor:
        return scalar(batch.size, batch.draw_keys_B.device)

    def forward(self, hidden: Coded, batch: Batch) -> Score:
        """The sum over pictures."""
        if hidden.output_BCHW is None:
            raise ValueError(f"{self.name}: the decoder was not run")
        with full_precision(hidden.pixels_BCHW.device):
            x, output = wide(hidden.pixels_BCHW), wide(hidden.output_BCHW)
            mu, log_b = output.chunk(2, 1)
            picture = (mu.sigmoid() - EPSILON) / (1 - 2 * EPSILON)  # uncut, so that a gradient remains outside 0 to 1
            if self.likelihood == "logit_laplace":
                error = logit_laplace(map_pixels(x), mu, log_b)
            else:
                error = (picture - x).square() if self.likelihood == "mse" else (picture - x).abs()
            reconstruction_B = error.flatten(1).mean(1)
            kl_B = self._kl(hidden)
            positions, values = hidden.logits_BKhw[0, 0].numel(), x[0].numel()
            loss_B = reconstruction_B + self.kl_weight / values * kl_B
            with torch.no_grad():
                mse_B = (picture.clamp(0, 1) - x).square().flatten(1).mean(1)
                found = {
                    "reconstruction": reconstruction_B,
                    "kl": kl_B / positions,
                    "mse": mse_B,
                    "psnr": -10 * mse_B.clamp(min=LEAST).log10(),
                }
                self._look(hidden.logits_BKhw)
        count = scalar(len(loss_B), loss_B.device)
        return Score(loss_B.sum(), count, {name: (value_B.detach().sum(), count) for name, value_B in found.items()})

    def _kl(self, hidden: Coded) -> Tensor:
        """KL to the prior of each picture, (B,), summed over positions."""
        logits = wide(hidden.logits_BKhw)
        if "vector_BDhw" in hidden.aux:  # one code is certain
            return logits.new_full((len(logits),), logits[0, 0].numel() * math.log(logits.shape[1]))
        return kl_to_uniform(logits).flatten(1).sum(1)

    def _look(self, logits_BKhw: Tensor) -> None:
        seen_K = torch.bincount(logits_BKhw.argmax(1).flatten(), minlength=logits_BKhw.shape[1])
        self._seen_K = seen_K if self._seen_K is None else self._seen_K + seen_K

    def pooled(self) -> Mapping[str, Any]:
        """``perplexity`` and ``usage`` of what was seen since the last call."""
        if self._seen_K is None:
            return {}
        seen_K, self._seen_K = total(self._seen_K, self.peers), None
        one = scalar(1, seen_K.device)
        return {"perplexity": (perplexity(seen_K), one), "usage": ((seen_K > 0).float().mean(), one)}


def perplexity(seen_K: Tensor) -> Tensor:
    """exp of the entropy of the codes, from how often each occurred: 1 for a single code, K for equal use of all."""
    share_K = seen_K.float() / seen_K.sum().clamp(min=1)
    return (-torch.special.xlogy(share_K, share_K).sum()).exp()
