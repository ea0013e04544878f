"""Regions by the small extractor: of annotated boxes, or of boxes that it proposes itself."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmpretrain.data_tools.regions_choose import Rule
from mmpretrain.data_tools.regions_labels import things
from mmpretrain.data_tools.regions_net import Extractor, Found, load_extractor, pixels_of
from mmpretrain.data_tools.regions_shard import Job
from mmpretrain.types import Regions


@functools.lru_cache(maxsize=2)
def _loaded(path: str, size: int, changed: int) -> Extractor:
    return load_extractor(Path(path))


def maker(options: Mapping[str, Any]) -> SmallMaker:
    """The maker of ``options``: file (path, size and time of the extractor), boxes, rule."""
    return SmallMaker(_loaded(*options["file"]), options["boxes"], Rule(*options["rule"]))


class SmallMaker:
    """Implements ``regions_shard.Maker``.

    Args:
        extractor: see ``regions_net``.
        boxes: ``annotated``: those of the sample's JSON (none there: no regions); ``proposals``: the extractor's own;
            ``auto``: annotated where a sample has them.
        rule: which proposals are kept.
    """

    def __init__(self, extractor: Extractor, boxes: str, rule: Rule) -> None:
        self.extractor, self.boxes, self.rule = extractor, boxes, rule

    def regions(self, jobs: Sequence[Job]) -> list[Regions | None]:
        return [self._one(job) for job in jobs]

    @torch.inference_mode()
    def _one(self, job: Job) -> Regions | None:
        labelled = things(job.sample.meta, job.sizes) if self.boxes != "proposals" else []
        if not labelled and self.boxes == "annotated":
            return None
        pixels, sx, sy = pixels_of(job.image, self.extractor.config.size)
        height, width = pixels.shape[1:]
        scaled = torch.tensor([sx, sy, sx, sy])
        mapped = self.extractor.net(pixels[None] / 255)
        if labelled:
            boxes = torch.tensor([thing.box for thing in labelled])
        else:
            found, scores = self.extractor.propose(mapped, width, height, self.rule.nms)
            boxes = found[self.rule.keep(scores)] / scaled
        whole = torch.tensor([[0.0, 0.0, float(job.image.width), float(job.image.height)]])
        given = self.extractor.of_boxes(mapped, torch.cat((whole, boxes)) * scaled, width, height)
        return _regions(given, boxes, job)


def _regions(found: Found, boxes: torch.Tensor, job: Job) -> Regions:
    """The first row of ``found`` is the whole picture."""
    probs = found.probs
    return Regions(
        features=found.features[1:].numpy(),
        boxes=boxes.numpy(),
        image_size=np.array([job.image.height, job.image.width]),
        classes=probs[0][1:].argmax(1).numpy(),
        class_probs=probs[0][1:].numpy(),
        attributes=probs[1][1:].argmax(1).numpy() if len(probs) > 1 else None,
        attribute_probs=torch.cat(probs[1:], 1)[1:].numpy() if len(probs) > 1 else None,
        scores=found.scores[1:].numpy(),
        global_feature=found.features[0].numpy(),
    )
