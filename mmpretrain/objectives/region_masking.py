"""Which regions of a batch are hidden, and what stands in their place (ViLBERT, arXiv 1908.02265; LXMERT, arXiv 1908.07490 section 3.1.2).

Regions are masked once for each view: the first objective of the view that needs it does it, those after it read the same masking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmpretrain import random
from mmpretrain.nn.boxes import iou
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout
from mmpretrain.types import Batch, RegionBatch

TARGET = "regions.masked"  # in ``batch.targets``; no objective can have a name with a dot


@dataclass(frozen=True)
class RegionMasker:
    """How regions are chosen and hidden. Every draw is a function of (key of the sample, name of the view, place of the region).

    Args:
        prob: chance that a region is chosen, each independently. A picture without any chosen region is allowed.
        zero: share of the chosen regions whose feature becomes zeros: 0.9 in ViLBERT and VL-BERT, 0.8 in LXMERT, 1 in UNITER and InterBERT.
        random: share whose feature becomes that of another region (LXMERT: 0.1); the rest stays as it is. LXMERT draws the other region
            from the whole data set, this one from the other samples of the micro-batch (from the own picture where there is no other
            sample), so that what is put there, and nothing else, depends on how the global batch is cut.
        spread_iou: regions that overlap with a drawn one by more than this are chosen and zeroed too, whatever was drawn for them
            (InterBERT, 12-in-1, UNIMO: 0.4), so that a hidden region is not seen through its neighbours. It goes no further than to them.
            None: off.
        spread_strict: the overlap must exceed ``spread_iou`` (the papers); False: it may equal it (InterBERT's code).
        spread_pixels: the last pixel counts, a box is x2 - x1 + 1 wide (the codes of ViLBERT and InterBERT).
        at_least_one: choose one region of a picture in which none was chosen (UNITER).

    Raises:
        ValueError: a probability, share or overlap out of range.
    """

    prob: float = 0.15
    zero: float = 0.9
    random: float = 0.0
    spread_iou: float | None = None
    spread_strict: bool = True
    spread_pixels: bool = False
    at_least_one: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.prob <= 1:
            raise ValueError(f"RegionMasker: prob={self.prob} must be in (0, 1]")
        if self.zero < 0 or self.random < 0 or self.zero + self.random > 1 + 1e-9:
            raise ValueError(f"RegionMasker: zero={self.zero} and random={self.random} must be shares with a sum of at most 1")
        if self.spread_iou is not None and not 0 < self.spread_iou <= 1:
            raise ValueError(f"RegionMasker: spread_iou={self.spread_iou} must be in (0, 1], or null")

    def mask(self, batch: Batch, name: str) -> Batch:
        """The batch with masked regions: ``chosen_N`` and ``removed_N`` (zeroed) are set, and ``targets`` has a ``MaskedRegions``.

        Regions of all samples are masked, true pairs or not: where some are matched in the same view, masks must not tell which. What
        counts in a loss is up to the objective.

        Args:
            batch: with regions that nobody has masked.
            name: of the view; makes the stream of the draws.

        Raises:
            ValueError: the batch has no regions, or they are masked already.
        """
        regions, keys_B = batch.regions, batch.draw_keys_B
        if regions is None:
            raise Misfit("the batch has no regions; name the sources that have regions in `sources`")
        if TARGET in batch.targets:
            raise Misfit(f"the regions of view {name!r} are masked already")
        layout = Layout(regions.lengths)
        chosen_N = self._chosen(keys_B, layout, name)
        action_N = _draws(keys_B, layout, f"{name}/regions/action")
        zeroed_N = chosen_N & (action_N < self.zero)
        swapped_N = chosen_N & (action_N >= self.zero) & (action_N < self.zero + self.random)
        if self.spread_iou is not None:
            beside_N = self._beside(regions, layout, chosen_N)
            chosen_N, zeroed_N, swapped_N = chosen_N | beside_N, zeroed_N | beside_N, swapped_N & ~beside_N
        features_NF = regions.features_NF
        if self.random > 0:
            other_NF = features_NF.index_select(0, _another(keys_B, layout, f"{name}/regions/other"))
            features_NF = torch.where(swapped_N[:, None], other_NF, features_NF)
        masked = regions._replace(
            features_NF=features_NF.masked_fill(zeroed_N[:, None], 0), chosen_N=chosen_N, removed_N=zeroed_N
        )
        target = MaskedRegions(self, regions.features_NF, chosen_N)
        return batch._replace(regions=masked, targets={**batch.targets, TARGET: target})

    def _chosen(self, keys_B: Tensor, layout: Layout, name: str) -> Tensor:
        draw_N = _draws(keys_B, layout, f"{name}/regions/choose")
        chosen_N = draw_N < self.prob
        if self.at_least_one:
            draw_BR = layout.pad(draw_N, 2.0)
            lowest_BR = draw_BR == draw_BR.amin(1, keepdim=True)
            none_B1 = ~layout.pad(chosen_N, False).any(1, keepdim=True)
            chosen_N = chosen_N | layout.pack(lowest_BR & none_B1)
        return chosen_N

    def _beside(self, regions: RegionBatch, layout: Layout, chosen_N: Tensor) -> Tensor:
        """Whether a region overlaps with another one that was chosen, bool (N,)."""
        overlap_BRR = iou(regions.boxes_N4, layout, self.spread_pixels)
        near_BRR = overlap_BRR > self.spread_iou if self.spread_strict else overlap_BRR >= self.spread_iou
        itself_RR = torch.eye(layout.max_len, dtype=torch.bool, device=chosen_N.device)
        chosen_BR = layout.pad(chosen_N, False)
        return layout.pack((near_BRR & ~itself_RR & chosen_BR[:, None, :]).any(2))


class MaskedRegions(NamedTuple):
    """What ``RegionMasker.mask`` leaves in ``batch.targets``: the features as they were. Labels stay in ``batch.regions``."""

    masker: RegionMasker
    features_NF: Tensor  # before masking
    chosen_N: Tensor  # bool; the very tensor that is in ``batch.regions``


def _draws(keys_B: Tensor, layout: Layout, stream: str) -> Tensor:
    """Uniform in [0, 1) for every region, (N,); a region's number depends on its sample and its place in it alone."""
    return layout.pack(random.uniform(keys_B, random.stream(stream), layout.max_len))


def _another(keys_B: Tensor, layout: Layout, stream: str) -> Tensor:
    """A region of another sample for every region, uniform over all of them: int64 (N,). With one sample, another region of it; a region
    that is alone gets itself."""
    device = keys_B.device
    draw_N = layout.pack(random.integers(keys_B, random.stream(stream), layout.max_len, 1 << 62))
    return elsewhere(draw_N, layout, torch.arange(layout.total, device=device), within=layout.size == 1)[0]


def elsewhere(draw_R: Tensor, layout: Layout, rows_R: Tensor, within: bool) -> tuple[Tensor, Tensor]:
    """Turn large random integers into regions that are not those of ``rows_R``.

    Args:
        draw_R: not negative, (R,) or (R, K).
        layout: of the regions.
        rows_R: packed regions, (R,).
        within: another region of the same sample; otherwise a region of another sample. Uniform in both cases.

    Returns:
        packed regions in the shape of ``draw_R``, and whether there was any to draw, (R,); where not, the region itself.
    """
    device = rows_R.device
    sample_R = layout.sample_N(device).index_select(0, rows_R)
    starts_B = layout.first_B(device)
    counts_B = layout.last_B(device) - starts_B + 1
    first_R, count_R = starts_B[sample_R], counts_B[sample_R]
    if within:
        room_R, skip_R, skipped_R, base_R = count_R - 1, rows_R, torch.ones_like(count_R), first_R
    else:
        room_R, skip_R, skipped_R, base_R = layout.total - count_R, first_R, count_R, torch.zeros_like(count_R)
    shape = (-1, *(1,) * (draw_R.dim() - 1))
    rows_R1, room_R1, skip_R1, skipped_R1, base_R1 = (x.view(shape) for x in (rows_R, room_R, skip_R, skipped_R, base_R))
    found = base_R1 + draw_R % room_R1.clamp(min=1)
    found = found + (found >= skip_R1) * skipped_R1
    return torch.where(room_R1 > 0, found, rows_R1), room_R > 0
