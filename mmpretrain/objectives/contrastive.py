"""Symmetric InfoNCE over the pairs of the global batch (CLIP, arXiv 2103.00020, figure 3), with the four ways of gathering features."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpretrain.objectives.gather import all_rows, all_rows_with_grad
from mmpretrain.objectives.paired import PairedObjective, weighted
from mmpretrain.objectives.precision import full_precision, scalar, wide
from mmpretrain.types import Score

Gather = Literal["local_grad", "global_grad", "global_no_grad", "local_no_grad"]


def _rows(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


class Contrastive(PairedObjective):
    """Each image finds its text among all texts of the step, each text its image; the mean of both directions.

    Args:
        gather: how the features of W ranks with B pairs each meet. The data-parallel wrapper averages gradients over ranks.

            * ``local_grad``: own rows against all columns, B x WB logits; gradients flow through the gather. Exact: equals one process with
              the whole batch. The default, and the only one that scales.
            * ``global_grad``: every rank computes all WB x WB logits. Exact too.
            * ``global_no_grad``: OpenCLIP's default. All logits, gradients only through the own features: the gradient of the encoders is
              1/W of the exact one, that of the logit scale is exact. Harmless with Adam alone, not with clipping, SGD or LAMB.
            * ``local_no_grad``: own rows against columns without gradient. The cross terms are missing, the gradient is biased.
        allow_biased: really use ``local_no_grad``.
        scale_bounds, weight, view, after, sources, only_if_matched: see ``PairedObjective``.
    """

    modes: ClassVar[tuple[str, ...]] = get_args(Gather)

    def __init__(
        self,
        gather: Gather = "local_grad",
        scale_bounds: tuple[float, float] | None = (0.0, 4.6052),
        allow_biased: bool = False,
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = True,
    ) -> None:
        super().__init__(scale_bounds, weight=weight, view=view, after=after, sources=sources, only_if_matched=only_if_matched)
        if gather not in self.modes:
            raise ValueError(f"Contrastive: unknown gather={gather!r}; choose one of {', '.join(self.modes)}")
        if gather == "local_no_grad" and not allow_biased:
            raise ValueError("Contrastive: gather=local_no_grad gives wrong gradients; use local_grad, or set allow_biased: true")
        self.gather = gather

    def loss_from_features(
        self, image_BE: Tensor, text_BE: Tensor, counts_B: Tensor | None = None, *, logit_scale: Tensor, logit_bias: Tensor | None = None
    ) -> Score:
        """Sum over the own pairs of (image-to-text + text-to-image) / 2. Stats: in-batch accuracies and exp(logit_scale)."""
        if logit_bias is not None:
            raise ValueError(f"{self.name}: a softmax cannot train a logit bias; set the model's logit_bias_init: null")
        counts_B = None if counts_B is None else counts_B.detach()
        with full_precision(image_BE.device):
            own_B2E = torch.stack((wide(image_BE), wide(text_BE)), 1)
            all_G2E, rank = self._gathered(own_B2E)
            scale, rows = wide(logit_scale).exp(), own_B2E.shape[0]
            whole = self.gather.startswith("global") and all_G2E.shape[0] > rows
            own_B2E = all_G2E if whole else own_B2E
            image_logits = scale * own_B2E[:, 0] @ all_G2E[:, 1].T
            text_logits = image_logits.T if image_logits.shape[0] == image_logits.shape[1] else scale * own_B2E[:, 1] @ all_G2E[:, 0].T
            labels = torch.arange(image_logits.shape[0], device=image_BE.device) + (0 if whole else rank * rows)
            losses = (_rows(image_logits, labels) + _rows(text_logits, labels)) / 2
            count = scalar(rows, image_BE.device) if counts_B is None else counts_B.sum().float()
            if whole:  # every rank has the loss of all pairs: it brings an equal share of the sum
                total = weighted(losses, None if counts_B is None else all_rows(counts_B, self.peers)) / self.peers.size
            else:
                total = weighted(losses, counts_B)
            own = slice(rank * rows, (rank + 1) * rows) if whole else slice(None)
            image_right = weighted((image_logits[own].argmax(1) == labels[own]).float(), counts_B).detach().float()
            text_right = weighted((text_logits[own].argmax(1) == labels[own]).float(), counts_B).detach().float()
        stats = {
            "accuracy": (image_right + text_right, 2 * count),
            "i2t_accuracy": (image_right, count),
            "t2i_accuracy": (text_right, count),
            "logit_scale": (scale.detach().sum().float() * count, count),
        }
        return Score(total, count, stats)

    def _gathered(self, own_B2E: Tensor) -> tuple[Tensor, int]:
        """The features of all ranks and the own rank, as the mode says. Alone in evaluation."""
        peers, rows = self.peers, own_B2E.shape[0]
        if not self.training or peers.size == 1:
            return own_B2E, 0
        if self.gather.endswith("_no_grad"):
            all_G2E = all_rows(own_B2E, peers)
            if self.gather == "global_no_grad":
                start = peers.rank * rows
                all_G2E = torch.cat((all_G2E[:start], own_B2E, all_G2E[start + rows :]))
            return all_G2E, peers.rank
        return all_rows_with_grad(own_B2E, peers), peers.rank
