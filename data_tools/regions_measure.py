"""How good an extractor is on samples that it was not trained on: accuracy, calibration, whether its own boxes meet the labelled ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from mmpretrain.data.regions_info import RegionsInfo
from mmpretrain.data_tools.regions_net import Extractor, RegionNet

if TYPE_CHECKING:
    from mmpretrain.data_tools.regions_fit import Picture

_BINS = 15  # of the calibration error
_PROPOSED = 100  # pictures on which own boxes are compared with the labelled ones
_NMS = 0.5


def _maps(net: RegionNet, pictures: Sequence[Picture]) -> tuple[list[Tensor], Tensor]:
    """Logits of each head and targets (N, heads) of all labelled boxes."""
    extractor = Extractor(net, RegionsInfo("extractor", "", net.config.width, ""))
    logits: list[list[Tensor]] = [[] for _ in net.labels]
    with torch.inference_mode():
        for picture in pictures:
            height, width = picture.pixels.shape[1:]
            heads = extractor.describe(net(picture.pixels[None] / 255), picture.boxes, width, height)
            for kind, found in zip(logits, heads.labels):
                kind.append(found)
    return [torch.cat(kind) for kind in logits], torch.cat([picture.targets for picture in pictures])


def calibrate(net: RegionNet, pictures: Sequence[Picture]) -> tuple[float, ...]:
    """For each head the temperature of least cross-entropy on these pictures, of 81 from 0.5 to 10.

    Not below 0.5: where nothing was wrong the least cross-entropy is that of certainty, which so few pictures cannot justify.
    """
    found = []
    for logits, target in zip(*_columns(*_maps(net, pictures))):
        grid = torch.logspace(math.log10(0.5), 1, 81)
        losses = torch.stack([F.cross_entropy(logits / value, target) for value in grid]) if len(target) else torch.zeros(81)
        found.append(float(grid[losses.argmin()]) if len(target) else 1.0)
    return tuple(found)


def _columns(logits: list[Tensor], targets: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and targets of each head, without the boxes that have no label for it."""
    known = [targets[:, head] >= 0 for head in range(targets.shape[1])]
    return [found[rows] for found, rows in zip(logits, known)], [targets[rows, head] for head, rows in enumerate(known)]


def calibration_error(probs: Tensor, target: Tensor) -> float:
    """Expected calibration error, 15 bins of equal width (Guo et al., arXiv 1706.04599, section 2)."""
    sure, best = probs.max(1)
    right = (best == target).float()
    bins = (sure * _BINS).long().clamp_max(_BINS - 1)
    error = 0.0
    for number in range(_BINS):
        rows = bins == number
        if rows.any():
            error += rows.float().mean().item() * abs(right[rows].mean().item() - sure[rows].mean().item())
    return error


def measure(net: RegionNet, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Accuracy and calibration error of class and attributes on the labelled boxes; recall and precision of own boxes at overlap 0.5."""
    names = ["class", *(kind for kind, _ in net.config.vocabulary.kinds)]
    found: dict[str, Any] = {"pictures": len(pictures), "boxes": sum(len(picture.boxes) for picture in pictures), "heads": {}}
    logits, targets = _columns(*_maps(net, pictures))
    for name, scores, target, divisor in zip(names, logits, targets, net.config.temperatures):
        if len(target):
            common = target.bincount().max().item() / len(target)
            found["heads"][name] = {
                "accuracy": round((scores.argmax(1) == target).float().mean().item(), 4),
                "always_the_most_frequent": round(common, 4),
                "calibration_error": round(calibration_error((scores / divisor).softmax(1), target), 4),
                "boxes": len(target),
            }
    found["proposals"] = _proposals(net, pictures[:: max(1, len(pictures) // _PROPOSED)])
    return found


def _proposals(net: RegionNet, pictures: Sequence[Picture]) -> dict[str, Any]:
    extractor = Extractor(net, RegionsInfo("extractor", "", net.config.width, ""))
    met, labelled, right, kept = 0, 0, 0, 0
    for picture in pictures:
        height, width = picture.pixels.shape[1:]
        with torch.inference_mode():
            boxes, scores = extractor.propose(net(picture.pixels[None] / 255), width, height, _NMS)
        boxes = boxes[scores >= 0.5]
        overlap = box_iou(picture.boxes, boxes) >= 0.5
        met, labelled = met + int(overlap.any(1).sum()), labelled + len(picture.boxes)
        right, kept = right + int(overlap.any(0).sum()), kept + len(boxes)
    return {"pictures": len(pictures), "recall": round(met / max(labelled, 1), 4), "precision": round(right / max(kept, 1), 4)}
