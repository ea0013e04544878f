"""Alignment of words with patches or regions by optimal transport (UNITER, arXiv 1909.11740 section 3.2; ViLT, arXiv 2102.03334 section
3.2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.precision import full_precision, scalar, wide
from mmpretrain.objectives.transport import ipot
from mmpretrain.types import Batch, Score, Spec, Vocabulary

LEAST = 0.025  # of beta: costs go up to 2, and exp(-2 / beta) must be a normal number of fp32


class WPA(Objective):
    """Transport distance between words and patches or regions: small for pairs that match, large for those that do not.

    The cost is 1 - cosine of the final states. Image tokens that are neither patches nor regions are left out. The plan (IPOT) is constant
    for the gradient. Runs in fp32 whatever the precision of the model.

    Args:
        beta: step of IPOT, at least 0.025: with a smaller one exp(-cost / beta) may be 0 in fp32.
        iterations: outer steps of IPOT, with one inner step each.
        special: the text's first token ([CLS]) and last real token ([SEP]) are words too (UNITER's code); ViLT leaves them out.
        weight, view, after, sources: see ``Objective``. Put it into the view of ITM, whose ``matched_B`` it reads.
    """

    kind: ClassVar[str] = "fused"
    perturbed: ClassVar[bool] = False  # a decision; UNITER and VILLA do not say (docs/villa.md)

    def __init__(
        self,
        beta: float = 0.5,
        iterations: int = 50,
        special: bool = False,
        *,
        weight: float = 0.1,
        view: str = "itm",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(weight=weight, view=view, after=after, sources=sources)
        if beta < LEAST or iterations < 1:
            raise ValueError(f"WPA: beta={beta} must be at least {LEAST} and iterations={iterations} at least 1")
        self.beta, self.iterations, self.special = beta, iterations, special

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        if self.kind not in spec.kinds:
            raise ValueError(f"{self.name}: needs a model with the kind {self.kind!r}, this one has {', '.join(spec.kinds)}")

    def count(self, batch: Batch) -> Tensor:
        """Number of samples."""
        return scalar(batch.size, batch.draw_keys_B.device)

    def _transport(self, hidden: Fused) -> tuple[Tensor, Tensor, Layout, Layout]:
        """Cost and plan (B, T, V), with the layouts of words and patches."""
        if hidden.text is None or hidden.image is None:
            raise Misfit(f"{self.name}: needs text and image states; name the sources that have both in `sources`")
        ends = 0 if self.special else 1
        words = Layout(tuple(max(n - 2 * ends, 0) for n in hidden.text.layout.lengths))
        others = hidden.image_prefix + hidden.image_suffix
        patches = Layout(tuple(max(n - others, 0) for n in hidden.image.layout.lengths))
        device = hidden.text.x_ND.device
        text_BTD = F.normalize(wide(hidden.text.pad()[:, ends : ends + words.max_len]), dim=-1)
        image_BVD = F.normalize(wide(hidden.image.pad()[:, hidden.image_prefix :][:, : patches.max_len]), dim=-1)
        cost_BTV = 1 - torch.bmm(text_BTD, image_BVD.transpose(1, 2))
        plan_BTV = ipot(cost_BTV.detach(), words.mask_BL(device), patches.mask_BL(device), self.beta, self.iterations)
        return cost_BTV, plan_BTV, words, patches

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        """Sum of the distances of pairs that match minus those of the others. Stats: mean distance of each kind."""
        if batch.matched_B is None:
            raise Misfit(f"{self.name}: the batch has no matched_B; put WPA into the view of ITM, after it in the recipe")
        with full_precision(batch.draw_keys_B.device):
            cost_BTV, plan_BTV, _, _ = self._transport(hidden)
            distance_B = (cost_BTV * plan_BTV).sum((1, 2))
            total = torch.where(batch.matched_B, distance_B, -distance_B).sum()
        matched_B, seen_B = batch.matched_B.float(), distance_B.detach().float()
        stats = {
            "distance_matched": ((seen_B * matched_B).sum(), matched_B.sum()),
            "distance_unmatched": ((seen_B * (1 - matched_B)).sum(), (1 - matched_B).sum()),
        }
        return Score(total, self.count(batch), stats)

    @torch.no_grad()
    def plan(self, hidden: Fused) -> list[Tensor]:
        """The plan of each sample: (words, patches) without [CLS], [SEP] and the image's prefix and suffix, in fp32; sums to 1 (with
        ``special``, to the share of the words). For heat maps."""
        if hidden.text is None:
            raise ValueError(f"{self.name}: needs text and image states")
        with full_precision(hidden.text.x_ND.device):
            _, plan_BTV, words, patches = self._transport(hidden)
        ends = 1 if self.special else 0
        return [plan_BTV[i, ends : t - ends, :v] for i, (t, v) in enumerate(zip(words.lengths, patches.lengths, strict=True))]
