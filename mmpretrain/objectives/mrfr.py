"""Masked region feature regression: what would the detector's feature of a hidden region be? (UNITER, arXiv 1909.11740 section 3.2;
ImageBERT, arXiv 2001.07966; an option of ViLBERT's code.)"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.region_heads import RegionHead, TiedFeatureHead
from mmpretrain.objectives.masked_regions import RegionObjective
from mmpretrain.objectives.precision import full_precision, wide
from mmpretrain.objectives.region_masking import RegionMasker
from mmpretrain.types import Batch, Score, Spec


class MRFR(RegionObjective):
    """Predict the feature of the chosen regions, as it was before masking, from text and picture.

    Args:
        loss: ``mse``: squared difference; ``smooth_l1``: Huber's loss with its bend at 1.
        tied: the last layer is the transpose of the model's feature projection with a free bias (UNITER); false: a linear layer of its own.
        reduction: ``elements``: mean over chosen regions and feature values (UNITER, ViLBERT); ``regions``: summed over the values, mean
            over chosen regions (ImageBERT's squared distance).
        norm_in_head: LayerNorm between the head's layers.
        transform: dense, GELU and LayerNorm before the last layer; false: the last layer alone (ImageBERT).
        masker: see ``RegionMasker``.
        weight, view, after, sources, only_if_matched: see ``RegionObjective``.
    """

    def __init__(
        self,
        loss: Literal["mse", "smooth_l1"] = "mse",
        tied: bool = True,
        reduction: Literal["elements", "regions"] = "elements",
        norm_in_head: bool = True,
        transform: bool = True,
        masker: RegionMasker = RegionMasker(),  # noqa: B008  (frozen)
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = False,
    ) -> None:
        super().__init__(masker, weight=weight, view=view, after=after, sources=sources, only_if_matched=only_if_matched)
        if loss not in ("mse", "smooth_l1"):
            raise ValueError(f"MRFR: unknown loss={loss!r}; choose mse or smooth_l1")
        if reduction not in ("elements", "regions"):
            raise ValueError(f"MRFR: unknown reduction={reduction!r}; choose elements or regions")
        self.loss, self.tied, self.reduction = loss, tied, reduction
        self.norm_in_head, self.transform = norm_in_head, transform

    def make_head(self, spec: Spec, width: int) -> nn.Module:
        assert spec.feature_width is not None
        if not self.tied:
            return RegionHead(width, spec.feature_width, spec.std, spec.norm_eps, self.norm_in_head, self.transform)
        projection = spec.feature_projection
        if projection is None or tuple(projection.weight.shape) != (width, spec.feature_width):
            found = "none" if projection is None else f"one of {tuple(projection.weight.shape)}"
            wanted = f"a feature projection of {(width, spec.feature_width)}, the model has {found}"
            raise ValueError(f"{self.name}: tied=true needs {wanted}; set tied: false")
        return TiedFeatureHead(projection, spec.std, spec.norm_eps, self.norm_in_head, self.transform)

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        """Sum over the chosen regions. Stats: ``cosine`` of prediction and feature, ``masked_share`` (chosen / all regions)."""
        chosen, masked, _ = self.target(batch)
        found_RF, count = self.predicted(hidden, batch), self.count(batch)
        with full_precision(found_RF.device):
            found_RF, wanted_RF = wide(found_RF), wide(self.features(masked, found_RF.shape[1]).index_select(0, chosen.rows_R))
            total = (F.mse_loss if self.loss == "mse" else F.smooth_l1_loss)(found_RF, wanted_RF, reduction="sum")
            if self.reduction == "elements":
                total = total / wanted_RF.shape[1]
            with torch.no_grad():
                cosine = F.cosine_similarity(found_RF, wanted_RF, dim=1).sum().float()
        return Score(total, count, {"cosine": (cosine, count), "masked_share": self.share(batch)})
