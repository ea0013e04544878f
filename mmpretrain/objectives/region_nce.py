"""Which of many features is that of a hidden region? Noise-contrastive estimation over regions (an option of the code of 12-in-1,
arXiv 1912.02315, which holds ViLBERT too)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpretrain import random
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.ragged import Layout
from mmpretrain.nn.region_heads import RegionHead
from mmpretrain.objectives.masked_regions import RegionObjective
from mmpretrain.objectives.precision import full_precision, wide
from mmpretrain.objectives.region_masking import RegionMasker, elsewhere
from mmpretrain.types import Batch, RegionBatch, Score, Spec

_HIGH = 1 << 62


class RegionNCE(RegionObjective):
    """Cross-entropy over the dot products of the prediction with the region's own feature and with those of other regions, all unmasked.

    Negatives are drawn with replacement from the regions of the micro-batch, keyed by the sample; those across pictures depend on how the
    global batch is cut. Where one kind cannot be had (one sample, one region), the other is all there is; where neither can, the loss is 0.

    Args:
        negatives: of each region; ``int(across * negatives)`` of them from other samples, ``int(within * negatives)`` from the same one, so
            254 of the 255 that the code's default asks for.
        across, within: shares of the two kinds.
        norm_in_head, transform: see ``MRC``.
        masker: see ``RegionMasker``.
        weight, view, after, sources, only_if_matched: see ``RegionObjective``.
    """

    def __init__(
        self,
        negatives: int = 255,
        across: float = 0.7,
        within: float = 0.3,
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
        if across < 0 or within < 0 or across + within > 1 + 1e-9:
            raise ValueError(f"RegionNCE: across={across} and within={within} must be shares with a sum of at most 1")
        self.across, self.within = int(across * negatives), int(within * negatives)
        if self.across + self.within < 1:
            raise ValueError(f"RegionNCE: negatives={negatives} with across={across} and within={within} leave none")
        self.norm_in_head, self.transform = norm_in_head, transform

    def make_head(self, spec: Spec, width: int) -> nn.Module:
        assert spec.feature_width is not None
        return RegionHead(width, spec.feature_width, spec.std, spec.norm_eps, self.norm_in_head, self.transform)

    def candidates(self, keys_B: Tensor, regions: RegionBatch, rows_R: Tensor) -> tuple[Tensor, Tensor]:
        """Packed regions (R, 1 + K) among which each of ``rows_R`` must find itself, itself first; and which of them count, bool."""
        layout = Layout(regions.lengths)
        region_keys_N = layout.pack(random.bits(keys_B, random.stream(f"{self.view}/regions/nce"), layout.max_len))
        keys_R = region_keys_N.index_select(0, rows_R)
        rows, counts = [rows_R[:, None]], [torch.ones_like(rows_R[:, None], dtype=torch.bool)]
        for kind, number in (("across", self.across), ("within", self.within)):
            draw_RK = random.integers(keys_R, random.stream(f"{self.view}/regions/nce/{kind}"), number, _HIGH)
            found_RK, some_R = elsewhere(draw_RK, layout, rows_R, within=kind == "within")
            rows.append(found_RK)
            counts.append(some_R[:, None].expand(-1, number))
        return torch.cat(rows, 1), torch.cat(counts, 1)

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        """Sum over the chosen regions. Stats: ``accuracy`` (no candidate scores higher than the region itself) and ``masked_share``."""
        chosen, masked, regions = self.target(batch)
        found_RF, count = self.predicted(hidden, batch), self.count(batch)
        rows_RK, counts_RK = self.candidates(batch.draw_keys_B, regions, chosen.rows_R)
        with full_precision(found_RF.device):
            # all products with the regions of the micro-batch: far less memory than the feature of every candidate
            products_RN = wide(found_RF) @ wide(self.features(masked, found_RF.shape[1])).T
            scores_RK = products_RN.gather(1, rows_RK).masked_fill(~counts_RK, -torch.inf)
            total = F.cross_entropy(scores_RK, torch.zeros_like(chosen.rows_R), reduction="sum")
        right = (scores_RK.detach().argmax(1) == 0).sum().float()
        return Score(total, count, {"accuracy": (right, count), "masked_share": self.share(batch)})
