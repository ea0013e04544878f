"""From the features and boxes of regions to packed states: every published way that is a linear layer, a box code and norms.

===========================  =========  ============  ==========  ============  ======================================================
system                       combine    branch_norms  final norm  box           besides
===========================  =========  ============  ==========  ============  ======================================================
ViLBERT, InterBERT,          sum        no            yes         ``xyxya``     ``global_feature="first"``
ERNIE-ViL
Unicoder-VL                  sum        no            yes         ``xyxya``
ImageBERT                    sum        no            yes         ``xyxya``     rows of the text's tables, given to ``forward``
UNITER                       sum        yes           yes         ``xyxywha``   mask embedding; a row of the text's segment table
LXMERT                       mean       yes           no          ``xyxy``
VisualBERT                   sum        no            no          ``none``      own position and type tables; the model norms the joint rows
Oscar; Oscar+                concat     no            no; yes     ``xyxywh``
===========================  =========  ============  ==========  ============  ======================================================
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmpretrain.nn.boxes import box_code, code_width, iou
from mmpretrain.nn.dropout import Dropout
from mmpretrain.nn.layers import Embedding, Init, LayerNorm, Linear, fill
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout, Ragged, join
from mmpretrain.types import RegionBatch

COMBINE = ("sum", "mean", "concat")
GLOBAL = ("none", "first", "last")
SOURCES = ("mean", "given")
COUNTS = ("all", "kept", "overlap")
OVERLAP = 0.4  # IoU above which 12-in-1 leaves a region out of the count


def with_global(regions: RegionBatch, count: str = "all", place: str = "first", source: str = "mean") -> RegionBatch:
    """The regions with a whole picture before or behind those of each sample.

    Args:
        regions: features and boxes after masking.
        count: by what the sum of the features is divided: ``all``: the regions (ViLBERT); ``kept``: those that were not removed, and only
            they are summed; ``overlap``: those whose box does not overlap with a chosen one by more than 0.4, all being summed (12-in-1's
            release, where padding was counted too). At least 1.
        place: ``first`` or ``last``.
        source: ``mean`` of the features as they are now, masked ones included; ``given``: what the detector says of the whole picture.

    Returns:
        features, boxes, lengths and sizes alone; the box of a whole picture is 0, 0, width, height.

    Raises:
        ValueError: ``given``, and there is none, or one of another width.
    """
    device, layout = regions.features_NF.device, Layout(regions.lengths)
    whole_BF = _mean(regions, layout, count) if source == "mean" else _given(regions)
    boxes_B4 = torch.tensor([(0, 0, width, height) for height, width in regions.sizes], dtype=torch.float32).to(device, non_blocking=True)
    ones = Layout((1,) * layout.size)
    pairs = ((Ragged(whole_BF, ones), Ragged(regions.features_NF, layout)), (Ragged(boxes_B4, ones), Ragged(regions.boxes_N4, layout)))
    features, boxes = (join(*pair)[0] if place == "first" else join(*reversed(pair))[0] for pair in pairs)
    return RegionBatch(features.x_ND, boxes.x_ND, features.layout.lengths, regions.sizes)


def _given(regions: RegionBatch) -> Tensor:
    whole_BF, features_NF = regions.global_BF, regions.features_NF
    if whole_BF is None:
        lack = "global_from=given, and the regions have no feature of the whole picture (global_feature of KEY.regions.npz)"
        raise Misfit(f"{lack}: make regions that have one, or set global_from: mean")
    if whole_BF.shape[1] != features_NF.shape[1]:
        widths = f"{whole_BF.shape[1]} values, those of the regions {features_NF.shape[1]}"
        raise Misfit(f"global_from=given: the feature of the whole picture has {widths}; set global_from: mean")
    return whole_BF.to(features_NF.dtype)


def _mean(regions: RegionBatch, layout: Layout, count: str) -> Tensor:
    device = regions.features_NF.device
    sample_N, features_NF = layout.sample_N(device), regions.features_NF
    counted_N = torch.ones(layout.total, device=device)
    if count == "kept" and regions.removed_N is not None:
        counted_N = (~regions.removed_N).float()
        features_NF = features_NF.masked_fill(regions.removed_N[:, None], 0)
    if count == "overlap" and regions.chosen_N is not None:
        near_BRR = (iou(regions.boxes_N4, layout, pixels=True) > OVERLAP) & layout.pad(regions.chosen_N, False)[:, None]
        counted_N = (~layout.pack(near_BRR.any(2))).float()
    total_BF = features_NF.new_zeros(layout.size, features_NF.shape[1]).index_add(0, sample_N, features_NF)
    count_B = counted_N.new_zeros(layout.size).index_add(0, sample_N, counted_N).clamp_min(1)
    return total_BF / count_B[:, None].to(total_BF.dtype)


class RegionEmbedder(nn.Module):
    """Features and boxes of regions -> packed states.

    Args:
        width: of the states, D.
        features: values of a region's feature, F.
        box: code of the box, see ``nn.boxes``.
        combine: ``sum`` or ``mean`` of the projected feature and the projected code; ``concat``: one projection of feature and code.
        branch_eps: eps of a LayerNorm on each of the two projections; None: none. Not for ``concat``.
        norm_eps: eps of the LayerNorm on the combined state; None: none.
        dropout: after everything.
        positions, types: rows of position and type tables of its own, 0 for none. Every region reads row 0 of each (VisualBERT).
        mask_embedding: a learned feature that is added to features that a masker removed (UNITER).
        global_feature: a whole picture stands before (``first``) or behind (``last``) the regions of each sample; ``none``.
        global_count: by what the mean is divided: ``all``, ``kept`` or ``overlap`` (see ``with_global``).
        global_from: its feature: the ``mean`` of the regions', or the one that is ``given`` with them (``global_BF``), from which no masker
            takes anything away.
        init, std: of the projections: ``normal`` or ``trunc_normal`` with this std, or ``torch``. Tables and the mask embedding: N(0, std).

    Raises:
        ValueError: an unknown option; ``mean`` or ``concat`` without a box code; ``concat`` with norms of its branches.
    """

    def __init__(
        self,
        width: int,
        features: int,
        box: str = "xyxya",
        combine: str = "sum",
        branch_eps: float | None = None,
        norm_eps: float | None = 1e-12,
        dropout: float = 0.0,
        positions: int = 0,
        types: int = 0,
        mask_embedding: bool = False,
        global_feature: str = "none",
        global_count: str = "all",
        global_from: str = "mean",
        init: str = "normal",
        std: float = 0.02,
    ) -> None:
        super().__init__()
        choices: dict[str, tuple[str, tuple[str, ...]]] = {
            "combine": (combine, COMBINE),
            "global_feature": (global_feature, GLOBAL),
            "global_count": (global_count, COUNTS),
            "global_from": (global_from, SOURCES),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"RegionEmbedder: {name}={value!r}; choose one of {', '.join(allowed)}")
        code = code_width(box)
        if combine != "sum" and not code:
            raise ValueError(f"RegionEmbedder: combine={combine} needs a box code, got box=none: use combine=sum")
        if combine == "concat" and branch_eps is not None:
            raise ValueError("RegionEmbedder: combine=concat has no branches for branch_eps; its norm is norm_eps")
        self.width, self.features, self.box, self.combine, self.std = width, features, box, combine, std
        if global_from == "given" and (global_feature == "none" or global_count != "all"):
            raise ValueError("RegionEmbedder: global_from=given needs global_feature first or last, and global_count all: there is no mean")
        self.global_feature, self.global_count, self.global_from = global_feature, global_count, global_from
        kind, two = Init(init, std), bool(code) and combine != "concat"
        self.projection = Linear(features if two else features + code, width, init=kind)
        self.box_projection = Linear(code, width, init=kind) if two else None
        self.feature_norm = nn.Identity() if branch_eps is None else LayerNorm(width, eps=branch_eps)
        self.box_norm = nn.Identity() if branch_eps is None or not two else LayerNorm(width, eps=branch_eps)
        self.positions = Embedding(positions, width, Init("normal", std)) if positions else None
        self.types = Embedding(types, width, Init("normal", std)) if types else None
        self.norm = nn.Identity() if norm_eps is None else LayerNorm(width, eps=norm_eps)
        self.dropout = Dropout(dropout) if dropout else nn.Identity()
        self.mask_embedding = nn.Parameter(torch.empty(1, features)) if mask_embedding else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The mask embedding: N(0, std)."""
        if self.mask_embedding is not None:
            fill(self.mask_embedding, Init("normal", self.std))

    @property
    def feature_projection(self) -> nn.Linear | None:
        """The layer from F to D; None where it takes the box too."""
        return self.projection if self.projection.in_features == self.features else None

    @property
    def suffix(self) -> int:
        """How many tokens behind the regions of each sample are none."""
        return int(self.global_feature == "last")

    def forward(self, regions: RegionBatch, row_D: Tensor | None = None) -> tuple[Ragged, int]:
        """Packed states, and how many tokens before the regions of each sample are none (``suffix``: behind them).

        Args:
            regions: with ``removed_N`` and ``delta_NF`` where there are any. The delta is added to the features, and what a global feature
                averages has it too.
            row_D: added to every state before the norm: rows of tables that are shared with the text.

        Raises:
            ValueError: features of another width, a sample without regions, a delta of another shape, or no feature of the whole
                picture where one must be given.
        """
        regions = self._features(regions)
        prefix = 0
        if self.global_feature != "none":
            regions = with_global(regions, self.global_count, self.global_feature, self.global_from)
            prefix = 1 - self.suffix
        dtype = self.projection.weight.dtype
        features_NF = regions.features_NF.to(dtype)
        if self.combine == "concat":
            features_NF = torch.cat([features_NF, box_code(regions, self.box).to(dtype)], dim=1)
        x_ND = self.feature_norm(self.projection(features_NF))
        if self.box_projection is not None:
            x_ND = x_ND + self.box_norm(self.box_projection(box_code(regions, self.box).to(dtype)))
        if self.combine == "mean":
            x_ND = x_ND / 2
        for table in (self.positions, self.types):
            if table is not None:
                x_ND = x_ND + table.weight[0]
        if row_D is not None:
            x_ND = x_ND + row_D
        return Ragged(self.dropout(self.norm(x_ND)), Layout(regions.lengths)), prefix

    def _features(self, regions: RegionBatch) -> RegionBatch:
        """The regions with what is added to their features: mask embedding and delta."""
        x_NF = regions.features_NF
        if x_NF.shape[1] != self.features:
            raise ValueError(
                f"the regions have features of {x_NF.shape[1]} values, the model takes {self.features}: set features of its RegionEmbedder"
            )
        if min(regions.lengths, default=0) < 1:
            raise ValueError("every sample needs at least one region")
        if self.mask_embedding is not None and regions.removed_N is not None:
            x_NF = torch.where(regions.removed_N[:, None], x_NF + self.mask_embedding.to(x_NF.dtype), x_NF)
        if regions.delta_NF is not None:
            if regions.delta_NF.shape != x_NF.shape:
                raise ValueError(f"regions.delta_NF must be {tuple(x_NF.shape)}, like the features, got {tuple(regions.delta_NF.shape)}")
            x_NF = x_NF + regions.delta_NF
        return regions._replace(features_NF=x_NF)
