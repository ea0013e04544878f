"""Object prediction of LXMERT (arXiv 1908.07490 section 3.1.2): class, attribute and feature of regions, from one head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.region_heads import RegionHeads
from mmpretrain.objectives.masked_regions import (
    RegionGuess,
    RegionObjective,
    attribute_labels,
    class_labels,
    most_labels,
    settled,
)
from mmpretrain.objectives.precision import full_precision, scalar, wide
from mmpretrain.objectives.region_masking import MaskedRegions, RegionMasker
from mmpretrain.types import Batch, RegionBatch, Score, Spec, Vocabulary

PARTS = ("obj", "attr", "feat")


class Objects(RegionObjective):
    """The sum of up to three losses, each the mean over all regions of the batch, times 1 / ``masker.prob``.

    ``obj`` and ``attr`` are cross-entropies with the class and the attribute; ``feat`` is, of the chosen regions, the distance to the
    feature before masking, averaged over its values.

    Args:
        parts: kind -> factor; None: all three with 1. Leave out what the regions lack.
        classes: of objects; 1600 of Visual Genome, without the background. None: those of the data (``regions.json``).
        attributes: likewise (400).
        scope: ``all``: classes and attributes of every region, masked or not, weighted by the detector's confidence, as in the released
            code. The confidence of a class is ``scores_N``, else its probability; that of an attribute its probability, else ``scores_N``.
            ``masked``: those of the chosen regions with weight 1, as the paper says. A region without the label has no weight.
        masker: LXMERT's by default: 80 % zeros, 10 % another region, 10 % as they are.
        feat_loss: ``smooth_l1``: Huber's loss with its bend at 1, as in the released code; ``mse``: squared difference, as the paper says.
        weight, view, after, sources, only_if_matched: see ``RegionObjective``.
    """

    def __init__(
        self,
        parts: dict[str, float] | None = None,
        classes: int | None = None,
        attributes: int | None = None,
        scope: Literal["all", "masked"] = "all",
        masker: RegionMasker = RegionMasker(zero=0.8, random=0.1),  # noqa: B008  (frozen)
        feat_loss: Literal["smooth_l1", "mse"] = "smooth_l1",
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = False,
    ) -> None:
        super().__init__(masker, weight=weight, view=view, after=after, sources=sources, only_if_matched=only_if_matched)
        parts = dict.fromkeys(PARTS, 1.0) if parts is None else {name: float(factor) for name, factor in parts.items() if factor}
        if not parts or set(parts) - set(PARTS):
            raise ValueError(f"Objects: parts={sorted(parts)} must name some of {', '.join(PARTS)}")
        if scope not in ("all", "masked"):
            raise ValueError(f"Objects: unknown scope={scope!r}; choose all or masked")
        if feat_loss not in ("smooth_l1", "mse"):
            raise ValueError(f"Objects: unknown feat_loss={feat_loss!r}; choose smooth_l1 or mse")
        self.feat_loss = feat_loss
        self.parts = {name: parts[name] for name in PARTS if name in parts}
        self.given, self.scope = {"classes": classes, "attributes": attributes}, scope
        self.classes, self.attributes = classes or 0, attributes or 0

    def settle(self, vocabulary: Vocabulary | None) -> None:
        classes, attributes = (vocabulary.region_classes, vocabulary.region_attributes) if vocabulary is not None else (0, 0)
        if "obj" in self.parts:
            background = vocabulary.region_background if vocabulary is not None else None
            self.classes = settled(self.name, "classes", self.given["classes"], classes, most_labels(classes, background))
        if "attr" in self.parts:
            if classes and not attributes:
                raise ValueError(f"{self.name}: the regions of the data have no attributes (regions.json); leave `attr` out of `parts`")
            self.attributes = settled(self.name, "attributes", self.given["attributes"], attributes, attributes)

    def make_head(self, spec: Spec, width: int) -> nn.Module:
        assert spec.feature_width is not None
        sizes = {"obj": self.classes, "attr": self.attributes, "feat": spec.feature_width}
        return RegionHeads(width, {name: sizes[name] for name in self.parts}, spec.std, spec.norm_eps)

    def corrupt(self, batch: Batch, outputs: Mapping[str, Any]) -> Batch:
        for name in ("obj", "attr"):
            if batch.regions is not None and name in self.parts:  # say what is missing, before the forward
                check, most = (class_labels, self.classes) if name == "obj" else (attribute_labels, self.attributes)
                check(self.name, batch.regions, most)
                self._confidence(batch.regions, name)
        return super().corrupt(batch, outputs)

    def count(self, batch: Batch) -> Tensor:
        """Number of regions of the samples that count, chosen or not."""
        _, masked, _ = self.target(batch)
        matched_N = self.matched(batch)
        return scalar(masked.chosen_N.shape[0], masked.chosen_N.device) if matched_N is None else matched_N.sum().float()

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        """Sum over all regions. Stats: the loss of each part (``obj``, ``attr``, ``feat``), ``obj_accuracy`` and ``attr_accuracy`` over the
        chosen regions that have the label, ``masked_share``."""
        chosen, masked, regions = self.target(batch)
        if self.head is None:
            raise ValueError(f"{self.name}: there is no head yet; call bind(spec, vocabulary) first")
        rows_R, count, everything = chosen.rows_R, self.count(batch), self.scope == "all"
        seen_R = torch.arange(masked.chosen_N.shape[0], device=rows_R.device) if everything else rows_R
        x_RD = self.head.transform(self.states(hidden, regions, seen_R))
        totals: dict[str, Tensor] = {}
        stats = {"masked_share": self.share(batch)}
        for name in self.parts:
            if name == "feat":
                totals[name] = self._distance(x_RD.index_select(0, rows_R) if everything else x_RD, masked, rows_R)
            else:
                totals[name], right_R = self._entropy(x_RD, name, batch, regions, seen_R)
                asked_R = self._labels(regions, name).index_select(0, rows_R) >= 0
                right_R = right_R.index_select(0, rows_R) if everything else right_R
                stats[f"{name}_accuracy"] = ((right_R & asked_R).sum().float(), asked_R.sum().float())
        totals = {name: total / self.masker.prob for name, total in totals.items()}
        stats |= {name: (total.detach().float(), count) for name, total in totals.items()}
        return Score(torch.stack([self.parts[name] * total for name, total in totals.items()]).sum(), count, stats)

    @torch.no_grad()
    def guess(self, hidden: Fused, batch: Batch, k: int = 5) -> list[list[RegionGuess]]:
        """The k most probable classes of the chosen regions, one list per sample; empty lists without the part ``obj``."""
        chosen, _, regions = self.target(batch)
        if "obj" not in self.parts:
            return [[] for _ in batch.keys]
        x_RD = self.head.transform(self.states(hidden, regions, chosen.rows_R))
        return self.guesses(self.head(x_RD, "obj"), self._labels(regions, "obj").index_select(0, chosen.rows_R), batch, k)

    def _distance(self, x_RD: Tensor, masked: MaskedRegions, rows_R: Tensor) -> Tensor:
        found_RF = self.head(x_RD, "feat")
        wanted_RF = self.features(masked, found_RF.shape[1]).index_select(0, rows_R)
        with full_precision(x_RD.device):
            loss = F.mse_loss if self.feat_loss == "mse" else F.smooth_l1_loss
            return loss(wide(found_RF), wide(wanted_RF), reduction="sum") / wanted_RF.shape[1]

    def _entropy(self, x_RD: Tensor, name: str, batch: Batch, regions: RegionBatch, rows_R: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum over rows, and whether each row is right, (R,)."""
        logits_RC = self.head(x_RD, name)
        labels_R = self._labels(regions, name).index_select(0, rows_R)
        with full_precision(x_RD.device):
            losses_R = F.cross_entropy(wide(logits_RC), labels_R.clamp(min=0), reduction="none")
            total = (losses_R * self._weights(batch, regions, name, rows_R).to(losses_R.dtype)).sum()
        return total, logits_RC.detach().argmax(-1) == labels_R

    def _labels(self, regions: RegionBatch, name: str) -> Tensor:
        labels_N = regions.classes_N if name == "obj" else regions.attributes_N
        assert labels_N is not None  # ``corrupt`` has looked
        return labels_N

    def _weights(self, batch: Batch, regions: RegionBatch, name: str, rows_R: Tensor) -> Tensor:
        """What the loss of each row counts; 0 without a label, and for samples that do not count."""
        weights_N = (self._labels(regions, name) >= 0).float() * self._confidence(regions, name)
        matched_N = self.matched(batch)
        return (weights_N if matched_N is None else weights_N * matched_N).index_select(0, rows_R)

    def _confidence(self, regions: RegionBatch, name: str) -> Tensor | float:
        if self.scope == "masked":
            return 1.0
        scores_N, labels_N = regions.scores_N, self._labels(regions, name)
        table = regions.class_probs_NC if name == "obj" else regions.attribute_probs_NA
        if scores_N is not None and (name == "obj" or table is None):
            return scores_N.float()
        if table is None:
            raise Misfit(f"{self.name}: scope=all weights regions by the detector's confidence, and these have none; set scope: masked")
        return table.float().gather(1, labels_N.clamp(min=0)[:, None]).squeeze(1)
