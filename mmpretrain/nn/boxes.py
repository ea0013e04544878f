"""What a model is told of the place of a region: codes of boxes, and how much boxes overlap.

==========  ======  =====================================================================================================
code        values  of a box x1 y1 x2 y2 in a picture of W x H pixels
==========  ======  =====================================================================================================
``none``    0       nothing (VisualBERT)
``xyxy``    4       x1/W, y1/H, x2/W, y2/H (LXMERT)
``xyxya``   5       these and the share of the picture's area (ViLBERT, Unicoder-VL, ImageBERT, InterBERT, ERNIE-ViL)
``xyxywh``  6       x1/W, y1/H, x2/W, y2/H, w/W, h/H (Oscar; VisualBERT on Flickr30k)
``xyxywha`` 7       these and the share of the picture's area (UNITER)
``sincos``  2048    sines and cosines of centre, width and height (VL-BERT, arXiv 1908.08530 section 3.2); another width can be asked for
==========  ======  =====================================================================================================
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmpretrain.nn.ragged import Layout
from mmpretrain.types import RegionBatch

CODES = {"none": 0, "xyxy": 4, "xyxya": 5, "xyxywh": 6, "xyxywha": 7, "sincos": 2048}
SINCOS_SCALE = 100.0  # VL-BERT's code multiplies the four shares by it
SINCOS_BASE = 1000.0  # the longest wave over the shortest


def code_width(kind: str) -> int:
    """Values of a code.

    Raises:
        ValueError: the code is unknown.
    """
    if kind not in CODES:
        raise ValueError(f"unknown box code {kind!r}; choose one of {', '.join(CODES)}")
    return CODES[kind]


def shares(regions: RegionBatch) -> Tensor:
    """Corners as shares of width and height of the picture: float32 (N, 4)."""
    boxes_N4 = regions.boxes_N4.float()
    sides_B4 = torch.tensor([(width, height, width, height) for height, width in regions.sizes], dtype=torch.float32)
    sample_N = Layout(regions.lengths).sample_N(boxes_N4.device)
    return boxes_N4 / sides_B4.to(boxes_N4.device, non_blocking=True).index_select(0, sample_N)


def box_code(regions: RegionBatch, kind: str, width: int = 2048) -> Tensor:
    """The code of every region's box.

    Args:
        regions: boxes in pixels, with the sizes of their pictures.
        kind: one of ``CODES``.
        width: of ``sincos``, a multiple of 8: width / 8 wave lengths for each of xc/W, yc/H, w/W, h/H, first the sines, then the cosines.

    Returns:
        float32 (N, K).

    Raises:
        ValueError: an unknown kind, or a width that 8 does not divide.
    """
    if code_width(kind) == 0:
        return regions.boxes_N4.new_zeros(regions.boxes_N4.shape[0], 0, dtype=torch.float32)
    corners_N4 = shares(regions)
    low_N2, high_N2 = corners_N4[:, :2], corners_N4[:, 2:]
    extent_N2 = high_N2 - low_N2
    if kind == "sincos":
        return _waves(torch.cat([(low_N2 + high_N2) / 2, extent_N2], dim=1), width)
    parts = [corners_N4]
    if kind in ("xyxywh", "xyxywha"):
        parts.append(extent_N2)
    if kind in ("xyxya", "xyxywha"):
        parts.append(extent_N2.prod(1, keepdim=True))
    return torch.cat(parts, dim=1)


def _waves(place_N4: Tensor, width: int) -> Tensor:
    if width < 8 or width % 8:
        raise ValueError(f"the sincos box code needs a width that is a multiple of 8, got {width}")
    waves = width // 8
    lengths_J = SINCOS_BASE ** (torch.arange(waves, dtype=torch.float32, device=place_N4.device) / waves)
    angles_N4J = (SINCOS_SCALE * place_N4)[:, :, None] / lengths_J
    return torch.cat([angles_N4J.sin(), angles_N4J.cos()], dim=2).flatten(1)


def iou(boxes_N4: Tensor, layout: Layout, pixels: bool = False) -> Tensor:
    """Intersection over union of every pair of regions of a sample.

    Args:
        boxes_N4: x1 y1 x2 y2, packed.
        layout: of the regions.
        pixels: the last pixel counts, a box is x2 - x1 + 1 wide (ViLBERT, InterBERT).

    Returns:
        float32 (B, R, R), R the most regions of a sample; 0 where one of the two is padding, and for two boxes without any area.
    """
    boxes_BR4 = layout.pad(boxes_N4.float())
    low_BR2, high_BR2 = boxes_BR4[..., :2], boxes_BR4[..., 2:]
    more = 1.0 if pixels else 0.0
    area_BR = (high_BR2 - low_BR2 + more).prod(-1)
    inner_BRR2 = torch.minimum(high_BR2[:, :, None], high_BR2[:, None]) - torch.maximum(low_BR2[:, :, None], low_BR2[:, None])
    inner_BRR = (inner_BRR2 + more).clamp_min(0).prod(-1)
    union_BRR = area_BR[:, :, None] + area_BR[:, None] - inner_BRR
    real_BR = layout.mask_BL(boxes_N4.device)
    counts_BRR = real_BR[:, :, None] & real_BR[:, None] & (union_BRR > 0)
    return torch.where(counts_BRR, inner_BRR / union_BRR.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
