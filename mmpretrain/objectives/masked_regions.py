"""What the objectives over masked regions share: one masking for each view, the rows that count, the states of regions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.precision import scalar, wide
from mmpretrain.objectives.region_masking import TARGET, MaskedRegions, RegionMasker
from mmpretrain.types import Batch, RegionBatch, Spec, Vocabulary


class ChosenRegions(NamedTuple):
    """What an objective over masked regions leaves in ``batch.targets`` under its own name."""

    rows_R: Tensor  # int64, packed regions that count in its loss
    matched_B: Tensor | None  # that of the batch when they were selected


class RegionGuess(NamedTuple):
    """Predictions of the class of one masked region, best first."""

    region: int  # place in its sample
    label: int  # the class that counts as right, -1: none
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]


class RegionObjective(Objective):
    """Base of the losses over masked regions.

    The first of them in a view masks the regions; the others read the same masking, and must ask for the same. It hides regions of every
    sample; ``only_if_matched`` leaves those of false pairs out of the loss, not out of the masking, because a view with ITM would tell
    by the masks which pairs are true. ITM comes before them in the recipe: its swapped pictures are what is masked.

    Args:
        masker: how regions are chosen and hidden.
        weight, view, after, sources: see ``Objective``.
        only_if_matched: regions of pictures whose text is not true of them do not count (ViLBERT's ``objective`` 1, Unicoder-VL, ImageBERT,
            InterBERT; not LXMERT, UNITER and VL-BERT).
    """

    kind: ClassVar[str] = "fused"

    def __init__(
        self,
        masker: RegionMasker,
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = False,
    ) -> None:
        super().__init__(weight=weight, view=view, after=after, sources=sources, only_if_matched=only_if_matched)
        self.masker = masker
        self.head: Any = None  # a module, made by ``bind``

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        """Build the head once."""
        if self.kind not in spec.kinds:
            raise ValueError(f"{self.name}: needs a model with the kind {self.kind!r}, this one has {', '.join(spec.kinds)}")
        if spec.feature_width is None:
            raise ValueError(f"{self.name}: needs a model that reads regions (its spec has no feature_width)")
        self.settle(vocabulary)
        if self.head is None:
            self.head = self.make_head(spec, spec.width if spec.visual_width is None else spec.visual_width)

    def settle(self, vocabulary: Vocabulary | None) -> None:
        """Take the sizes that the recipe leaves to the data, and compare the others with the data, before the head is made. Raises
        ValueError where they are not known or do not fit."""

    @abstractmethod
    def make_head(self, spec: Spec, width: int) -> torch.nn.Module:
        """The head on states of ``width``."""

    def usable(self, regions: RegionBatch) -> Tensor | None:
        """Whether a region has what the loss needs, bool (N,); None: all have."""
        return None

    def corrupt(self, batch: Batch, outputs: Mapping[str, Any]) -> Batch:
        """The batch with masked regions. One device synchronisation (the list of regions that count)."""
        if batch.regions is None:
            raise Misfit(f"{self.name}: the batch has no regions; name the sources that have regions in `sources`")
        masked = batch.targets.get(TARGET)
        if masked is None:
            batch = self.masker.mask(batch, self.view)
        elif masked.masker != self.masker:
            raise Misfit(
                f"{self.name}: an earlier objective masked view {self.view!r} by {masked.masker}, this one asks for {self.masker}; "
                "give both the same masker, or views of their own"
            )
        regions = batch.regions
        assert regions is not None and regions.chosen_N is not None
        counts_N = regions.chosen_N
        usable_N = self.usable(regions)
        if usable_N is not None:
            counts_N = counts_N & usable_N
        matched_N = self.matched(batch)
        if matched_N is not None:
            counts_N = counts_N & matched_N
        chosen = ChosenRegions(counts_N.nonzero().squeeze(1), batch.matched_B)
        return batch._replace(targets={**batch.targets, self.name: chosen})

    def matched(self, batch: Batch) -> Tensor | None:
        """Whether a region belongs to a sample that counts, bool (N,); None: all do."""
        if not self.only_if_matched or batch.matched_B is None or batch.regions is None:
            return None
        return batch.matched_B.index_select(0, Layout(batch.regions.lengths).sample_N(batch.matched_B.device))

    def target(self, batch: Batch) -> tuple[ChosenRegions, MaskedRegions, RegionBatch]:
        """What counts, the regions as they were and as they are.

        Raises:
            ValueError: the batch was not corrupted, or something has changed its regions or matches since.
        """
        chosen, masked, regions = batch.targets.get(self.name), batch.targets.get(TARGET), batch.regions
        if not isinstance(chosen, ChosenRegions) or not isinstance(masked, MaskedRegions) or regions is None:
            raise ValueError(f"{self.name}: the batch was not corrupted; call corrupt(batch, outputs) first")
        if regions.chosen_N is not masked.chosen_N or (self.only_if_matched and batch.matched_B is not chosen.matched_B):
            raise Misfit(f"{self.name}: regions or pairs were changed after the regions were masked; put ITM before it in the recipe")
        return chosen, masked, regions

    def count(self, batch: Batch) -> Tensor:
        """Number of regions in the loss; may be 0."""
        rows_R = self.target(batch)[0].rows_R
        return scalar(rows_R.shape[0], rows_R.device)

    def states(self, hidden: Fused, regions: RegionBatch, rows_R: Tensor) -> Tensor:
        """The states of packed regions, (R, D).

        Raises:
            ValueError: the model did not return one state for every region.
        """
        layout, prefix, suffix = Layout(regions.lengths), hidden.image_prefix, hidden.image_suffix
        if hidden.image is None or hidden.image.layout.lengths != tuple(prefix + n + suffix for n in layout.lengths):
            raise ValueError(f"{self.name}: the model must return one state for every region of the batch")
        sample_R = layout.sample_N(rows_R.device).index_select(0, rows_R)
        return hidden.image.x_ND.index_select(0, rows_R + prefix * (sample_R + 1) + suffix * sample_R)

    def predicted(self, hidden: Fused, batch: Batch) -> Tensor:
        """What the head says of the regions in the loss, (R, outputs)."""
        chosen, _, regions = self.target(batch)
        if self.head is None:
            raise ValueError(f"{self.name}: there is no head yet; call bind(spec, vocabulary) first")
        return self.head(self.states(hidden, regions, chosen.rows_R))

    def features(self, masked: MaskedRegions, values: int) -> Tensor:
        """The features that are to be found, (N, F).

        Raises:
            ValueError: they have other than ``values``, which the head gives. (What computes features takes regions of any width.)
        """
        if masked.features_NF.shape[1] != values:
            found = f"the regions have features of {masked.features_NF.shape[1]} values, the head gives {values}"
            raise Misfit(f"{self.name}: {found}; make regions of {values} (mmpretrain data regions)")
        return masked.features_NF.detach()

    def guesses(self, logits_RC: Tensor, labels_R: Tensor, batch: Batch, k: int) -> list[list[RegionGuess]]:
        """The k best classes of the regions in the loss, one list per sample (for panels; copies to the host)."""
        chosen, _, regions = self.target(batch)
        layout, device = Layout(regions.lengths), chosen.rows_R.device
        best = wide(logits_RC).softmax(-1).topk(min(k, logits_RC.shape[-1]), dim=-1)
        where = [table.index_select(0, chosen.rows_R).tolist() for table in (layout.sample_N(device), layout.slot_N(device))]
        what = [labels_R.tolist(), best.indices.tolist(), best.values.tolist()]
        found: list[list[RegionGuess]] = [[] for _ in batch.keys]
        for sample, region, label, classes, values in zip(*where, *what, strict=True):
            found[sample].append(RegionGuess(region, label, tuple(classes), tuple(values)))
        return found

    def share(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(chosen regions, regions) of the batch, for the statistics."""
        _, masked, _ = self.target(batch)
        return masked.chosen_N.sum().float(), scalar(masked.chosen_N.shape[0], masked.chosen_N.device)


def settled(name: str, what: str, given: int | None, known: int, least: int) -> int:
    """How many outputs a head has for ``what``, classes or attributes.

    Args:
        given: by the recipe; None: as many as the data have.
        known: of the data; 0: not known.
        least: of a head that fits the data.

    Raises:
        ValueError: neither says, or the recipe says less than ``least``.
    """
    if given is None and not known:
        raise ValueError(f"{name}: the data do not say how many {what} there are (no regions.json names them); set `{what}`")
    if given is not None and known and given < least:
        raise ValueError(f"{name}: {what}={given}, but the regions of the data have {known} (regions.json); set {known}, or null for those")
    return known if given is None else given


def most_labels(classes: int, background: int | None) -> int:
    """One more than the largest label among so many columns: no region has the background as its class."""
    return classes - (background is not None and background == classes - 1)


def class_labels(name: str, regions: RegionBatch, classes: int) -> Tensor:
    """``classes_N`` after a check that the head has a place for them.

    Raises:
        ValueError: there are none, or one is not below ``classes``.
    """
    return _checked(name, "classes", regions.classes_N, regions.class_probs_NC, classes)


def attribute_labels(name: str, regions: RegionBatch, attributes: int) -> Tensor:
    """``attributes_N``, likewise."""
    return _checked(name, "attributes", regions.attributes_N, regions.attribute_probs_NA, attributes)


def _checked(name: str, what: str, labels_N: Tensor | None, table: Tensor | None, most: int) -> Tensor:
    if labels_N is None:
        raise Misfit(f"{name}: the regions of the batch have no {what}; make regions that have them (docs/regions.md), or leave it out")
    known = table is not None and table.shape[1] <= most  # the reader of regions has compared labels with the width of their table
    if not known and bool((labels_N >= most).any()):
        wanted = f"the head has {most}; set `{what}` to the number in the data"
        raise Misfit(f"{name}: a region has number {int(labels_N.max())} of the {what} (from 0), {wanted}")
    return labels_N
