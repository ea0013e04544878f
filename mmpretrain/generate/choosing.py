"""How one code is drawn from logits: temperature, top-k, top-p, classifier-free guidance, and noise that is a function of the sample.

Gumbel-max (Gumbel 1954; Maddison, Tarlow and Minka 2014): ``argmax_k (logit_k / T + g_k)`` with independent standard Gumbel ``g_k`` is a
draw from ``softmax(logit / T)``. The noise of a position is a pure function of (key of the sample, position), so what a sample becomes
does not depend on the batch that it is drawn in.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mmpretrain.random import bits, key_of, stream

_NAME = "generate/code"


class Sampling(NamedTuple):
    """How codes are drawn.

    Args:
        temperature: divides the logits; 0: always the most probable code.
        top_k: only so many codes, the most probable ones; None: all.
        top_p: only the fewest most probable codes whose probabilities sum to at least this; None: all.
        guidance: of classifier-free guidance; 1: none.
        seed: of the noise.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0
    seed: int = 0

    def check(self, codes: int) -> Sampling:
        """Itself, for a vocabulary of ``codes``.

        Raises:
            ValueError: an option out of its range, naming it.
        """
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature} must be a finite number of at least 0 (0: always the most probable code)")
        if self.top_k is not None and not 1 <= self.top_k <= codes:
            raise ValueError(f"top_k={self.top_k} must be between 1 and {codes}, the number of codes")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")
        if not math.isfinite(self.guidance) or self.guidance < 0:
            raise ValueError(f"guidance={self.guidance} must be a finite number of at least 0 (1: no guidance)")
        return self

    @property
    def guided(self) -> bool:
        """Whether a second batch of empty captions is run."""
        return self.guidance != 1.0

    def describe(self) -> str:
        """One line, for protocols."""
        parts = [f"temperature {self.temperature:g}"]
        parts += [] if self.top_k is None else [f"top-k {self.top_k}"]
        parts += [] if self.top_p is None else [f"top-p {self.top_p:g}"]
        parts += [f"guidance {self.guidance:g}"] if self.guided else []
        return ", ".join([*parts, f"seed {self.seed}"])


def sample_key(seed: int, prompt: str, occurrence: int, sample: int) -> int:
    """The root of all noise of one picture: of the seed, the prompt itself (not its place in a list), how often the same prompt stood in
    the list before, and the number of the sample."""
    return key_of(seed, stream(prompt), occurrence, sample)


@lru_cache(maxsize=4096)
def _position(position: int) -> int:
    return stream(f"{_NAME}/{position}")


def gumbel(keys_B: Tensor, position: int, codes: int) -> Tensor:
    """Standard Gumbel noise, float64 (B, codes), of 52 random bits each: a function of key, position and code."""
    random_BK = bits(keys_B, _position(position), codes)
    share_BK = (((random_BK >> 12) & ((1 << 52) - 1)).double() + 0.5) * 2.0**-52  # in (0, 1), both ends left out
    return -(-torch.log1p(-share_BK)).log()


def guided(cond_BK: Tensor, empty_BK: Tensor, guidance: float) -> Tensor:
    """Logits with classifier-free guidance (Ho and Salimans, arXiv 2207.12598; over image tokens Gafni et al., arXiv 2203.13131):
    ``empty + guidance * (cond - empty)``."""
    return empty_BK + guidance * (cond_BK - empty_BK)


def top_k(logits_BK: Tensor, k: int) -> Tensor:
    """The logits with all but the k largest at minus infinity; of equal ones the first codes stay."""
    order_BK = logits_BK.argsort(dim=-1, descending=True, stable=True)
    return logits_BK.scatter(-1, order_BK[:, k:], -torch.inf)


def top_p(logits_BK: Tensor, p: float) -> Tensor:
    """The logits with all at minus infinity but the fewest largest whose probabilities sum to at least p (nucleus sampling, Holtzman et
    al., arXiv 1904.09751); of equal ones the first codes stay, and one stays always."""
    order_BK = logits_BK.argsort(dim=-1, descending=True, stable=True)
    mass_BK = logits_BK.double().softmax(-1).gather(-1, order_BK)
    before_BK = mass_BK.cumsum(-1) - mass_BK  # of the codes in front
    dropped_BK = before_BK >= p
    dropped_BK[:, 0] = False
    return logits_BK.masked_fill(torch.zeros_like(dropped_BK).scatter(-1, order_BK, dropped_BK), -torch.inf)


def choose(logits_BK: Tensor, keys_B: Tensor, position: int, sampling: Sampling) -> Tensor:
    """One code of each sample: int64 (B,).

    Args:
        logits_BK: with guidance applied.
        keys_B: of the samples, int64; see ``sample_key``.
        position: of the code in the grid, in raster order.
        sampling: temperature first, then top-k, then top-p.
    """
    logits_BK = logits_BK.double()
    if sampling.temperature == 0:
        return logits_BK.argmax(-1)
    logits_BK = logits_BK / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_BK.shape[-1]:
        logits_BK = top_k(logits_BK, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits_BK = top_p(logits_BK, sampling.top_p)
    return (logits_BK + gumbel(keys_B, position, logits_BK.shape[-1])).argmax(-1)
