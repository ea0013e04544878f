"""Masked region classification: which class does the detector see where a region is hidden? (ViLBERT, arXiv 1908.02265; UNITER,
arXiv 1909.11740 section 3.2; Unicoder-VL, arXiv 1908.06066; VL-BERT, arXiv 1908.08530 section 3.3.)"""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.region_heads import RegionHead
from mmpretrain.objectives.masked_regions import RegionGuess, RegionObjective, class_labels, most_labels, settled
from mmpretrain.objectives.precision import full_precision, wide
from mmpretrain.objectives.region_masking import RegionMasker
from mmpretrain.types import Batch, RegionBatch, Score, Spec, Vocabulary

Target = Literal["class", "argmax", "soft", "kl"]
_TOLERANCE = 0.1  # of the sum of a soft target (VL-BERT's code)


class MRC(RegionObjective):
    """Predict the class of the chosen regions from text and picture.

    Args:
        target: ``class``: cross-entropy with ``classes_N``; regions without a class (-1) do not count (Unicoder-VL, ImageBERT).
            ``argmax``: with the most probable class of the table, the background aside (UNITER's MRC). ``soft``: with the whole
            distribution; rows that do not sum to 1 within 0.1 do not count (VL-BERT). ``kl``: KL(target || prediction) over all classes
            (ViLBERT, InterBERT, UNITER's MRC-kl).
        classes: of the head: columns of the table of probabilities, with the background where it has one (1601); 1600 for classes alone.
            None: those of the data (``regions.json``), with their background.
        background: column of the background, which ``argmax`` leaves out; None: the table has none. Say it where you say ``classes``.
        norm_in_head: LayerNorm between the head's layers; VL-BERT has none.
        transform: dense, GELU and LayerNorm before the decoder; false: the decoder alone (Unicoder-VL, ImageBERT).
        reduction: ``regions``: mean over chosen regions. ``elements``: of ``kl``, divided by the number of classes too, as in UNITER's
            released code.
        masker: see ``RegionMasker``.
        weight, view, after, sources, only_if_matched: see ``RegionObjective``.
    """

    targets: ClassVar[tuple[str, ...]] = get_args(Target)

    def __init__(
        self,
        target: Target = "kl",
        classes: int | None = None,
        background: int | None = None,
        norm_in_head: bool = True,
        transform: bool = True,
        reduction: Literal["regions", "elements"] = "regions",
        masker: RegionMasker = RegionMasker(),  # noqa: B008  (frozen)
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = False,
    ) -> None:
        super().__init__(masker, weight=weight, view=view, after=after, sources=sources, only_if_matched=only_if_matched)
        if target not in self.targets:
            raise ValueError(f"MRC: unknown target={target!r}; choose one of {', '.join(self.targets)}")
        if reduction not in ("regions", "elements") or (reduction == "elements" and target != "kl"):
            raise ValueError(f"MRC: reduction={reduction!r} with target={target!r}; choose regions, or elements with target: kl")
        if classes is None and background is not None:
            raise ValueError(f"MRC: background={background} without `classes`; set both, or neither, which takes them from the data")
        if classes is not None and (classes < 1 or (background is not None and not 0 <= background < classes)):
            raise ValueError(f"MRC: background={background} must be one of {classes} classes, or null")
        self.goal, self.given = target, classes
        self.classes, self.background = classes or 0, background
        self.norm_in_head, self.transform, self.reduction = norm_in_head, transform, reduction

    def settle(self, vocabulary: Vocabulary | None) -> None:
        known, background = (vocabulary.region_classes, vocabulary.region_background) if vocabulary is not None else (0, None)
        self.classes = settled(self.name, "classes", self.given, known, most_labels(known, background) if self.goal == "class" else known)
        if self.given is None:
            self.background = background
        elif known and self.goal != "class" and self.given != known:
            found = f"the regions of the data have probabilities of {known} (regions.json)"
            raise ValueError(f"{self.name}: classes={self.given}, but {found}; set {known}, or null for those")

    def make_head(self, spec: Spec, width: int) -> nn.Module:
        return RegionHead(width, self.classes, spec.std, spec.norm_eps, self.norm_in_head, self.transform)

    def usable(self, regions: RegionBatch) -> Tensor | None:
        if self.goal == "class":
            return class_labels(self.name, regions, self.classes) >= 0
        table_NC = self._table(regions)
        return (wide(table_NC).sum(1) - 1).abs() <= _TOLERANCE if self.goal == "soft" else None

    def _table(self, regions: RegionBatch) -> Tensor:
        table_NC = regions.class_probs_NC
        if table_NC is None:
            raise Misfit(f"{self.name}: target={self.goal!r} needs class_probs, which the regions lack; set target: class")
        if table_NC.shape[1] != self.classes:
            found = f"the regions have probabilities of {table_NC.shape[1]} classes"
            raise Misfit(f"{self.name}: {found}, the head has {self.classes}; set `classes` to the number in the data")
        return table_NC

    def _labels(self, regions: RegionBatch, rows_R: Tensor) -> Tensor:
        """The class that counts as right, (R,)."""
        if self.goal == "class":
            assert regions.classes_N is not None
            return regions.classes_N.index_select(0, rows_R)
        table_RC = self._table(regions).index_select(0, rows_R)
        if self.goal == "argmax" and self.background is not None:
            table_RC = table_RC.clone()
            table_RC[:, self.background] = -1
        return table_RC.argmax(1)

    def logits(self, hidden: Fused, batch: Batch) -> Tensor:
        """(R, classes), a row for each region that counts."""
        return self.predicted(hidden, batch)

    @torch.no_grad()
    def guess(self, hidden: Fused, batch: Batch, k: int = 5) -> list[list[RegionGuess]]:
        """The k most probable classes of the regions that count, one list per sample."""
        chosen, _, regions = self.target(batch)
        return self.guesses(self.logits(hidden, batch), self._labels(regions, chosen.rows_R), batch, k)

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        """Sum over the regions that count. Stats: ``accuracy`` (of the most probable class), ``masked_share`` (chosen / all regions) and,
        with distributions as targets, their mean ``target_entropy`` (nats): the least that ``soft`` can reach."""
        chosen, _, regions = self.target(batch)
        logits_RC, count = self.logits(hidden, batch), self.count(batch)
        labels_R, soft = self._labels(regions, chosen.rows_R), self.goal in ("soft", "kl")
        right = (logits_RC.detach().argmax(-1) == labels_R).sum().float()
        stats = {"accuracy": (right, count), "masked_share": self.share(batch)}
        with full_precision(logits_RC.device):
            logs_RC = F.log_softmax(wide(logits_RC), -1)
            if soft:
                table_RC = wide(self._table(regions).index_select(0, chosen.rows_R))
                entropy = -torch.xlogy(table_RC, table_RC).sum()
                total = -(table_RC * logs_RC).sum()
                total = total - entropy if self.goal == "kl" else total
                stats["target_entropy"] = (entropy.float(), count)
            else:
                total = F.nll_loss(logs_RC, labels_R, reduction="sum")
            if self.reduction == "elements":
                total = total / self.classes
        return Score(total, count, stats)
