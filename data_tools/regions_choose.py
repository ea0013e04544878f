"""Which of many boxes are kept: the rule of bottom-up attention (Anderson et al., arXiv 1707.07998, released extraction code)."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

from mmpretrain.data.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


class Rule(NamedTuple):
    """Boxes of at least ``threshold``, but at least ``least`` and at most ``most``, the best first. 36 and 36: always 36."""

    threshold: float = 0.2
    least: int = 10
    most: int = 100
    nms: float = 0.5  # overlap above which the weaker of two boxes goes

    def keep(self, scores_N: Tensor) -> Tensor:
        """Numbers of the boxes that are kept, best first; fewer than ``least`` only where there are fewer."""
        order = scores_N.argsort(descending=True, stable=True)
        good = int((scores_N >= self.threshold).sum())
        return order[: min(max(good, self.least), self.most)]


def add_options(parser: argparse.ArgumentParser) -> None:
    default = Rule()
    group = parser.add_argument_group("which boxes are kept (detectors and proposals)")
    group.add_argument("--threshold", type=float, default=default.threshold, help=f"least score (default {default.threshold})")
    group.add_argument(
        "--min-boxes", type=int, default=default.least, help=f"the best so many, whatever their score (default {default.least})"
    )
    group.add_argument(
        "--max-boxes", type=int, default=default.most, help=f"at most so many (default {default.most}); 36 and 36: always 36"
    )
    group.add_argument("--nms", type=float, default=default.nms, help=f"overlap above which the weaker box goes (default {default.nms})")


def rule_of(options: Any) -> Rule:
    """The rule of parsed options.

    Raises:
        DataError: a number out of its range.
    """
    rule = Rule(options.threshold, options.min_boxes, options.max_boxes, options.nms)
    if not (0 <= rule.threshold <= 1 and 0 < rule.nms <= 1):
        raise DataError(f"--threshold {rule.threshold} and --nms {rule.nms} must be from 0 to 1")
    if not 1 <= rule.least <= rule.most:
        raise DataError(f"--min-boxes {rule.least} and --max-boxes {rule.most} must be ascending and at least 1")
    return rule


def strongest(scores_NC: Tensor, boxes_N4: Tensor, nms: float) -> Tensor:
    """For each box its highest score among the classes for which no better box overlaps it; 0 where every class has a better one. (N,)"""
    import torch
    from torchvision.ops import batched_nms

    count, classes = scores_NC.shape
    numbers = torch.arange(classes, device=scores_NC.device).expand(count, classes).reshape(-1)
    kept = batched_nms(boxes_N4.repeat_interleave(classes, 0), scores_NC.reshape(-1), numbers, nms)
    left = torch.zeros_like(scores_NC).view(-1)
    left[kept] = scores_NC.reshape(-1)[kept]
    return left.view(count, classes).amax(1)
