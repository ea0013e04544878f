"""Regions by a Faster R-CNN of torchvision: proposals, corrected boxes, class probabilities, and the features that its box head gives them.

Boxes are chosen by the rule of bottom-up attention (arXiv 1707.07998): for each class non-maximum suppression, then a box counts by its
best class that is left. By default boxes are those that the detector corrected for their best class, and features are pooled again from
them; ``--keep-proposals`` takes the proposals as they are, as bottom-up attention did.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import clip_boxes_to_image

from mmpretrain.data.errors import DataError
from mmpretrain.data.regions_info import RegionsInfo
from mmpretrain.data_tools.regions_choose import Rule, strongest
from mmpretrain.data_tools.regions_shard import Job
from mmpretrain.types import Regions

DETECTORS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
RANDOM_CLASSES = 91
_LEAST_SIDE = 1e-2  # pixels
_COCO_V1 = "258fb6c6"  # sha256 of torchvision's first ResNet-50 weights begins so; their frozen norms have eps 0
_ATTRIBUTE_HEAD = "attribute_head."


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth or .pt file; nothing in it is executed.

    Raises:
        DataError: not a file of tensors.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise DataError(f"{path} does not exist; --weights takes a .safetensors or .pth file")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  of damaged bytes the unpickler of torch may say anything
        raise _unreadable(path, error) from None
    for inner in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(inner), dict):
            found = found[inner]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"{path}: it holds no state_dict; save model.state_dict() with torch.save or safetensors")
    return found


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to load it all the same
        return DataError(f"{path}: it cannot be read as tensors (it holds more than tensors and plain types)")
    return DataError(
        f"{path}: it cannot be read as tensors ({type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''})"
    )


def file_sum(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build(name: str, weights: Path | None, attributes: int = 0) -> tuple[Any, nn.Linear | None]:
    """(detector in evaluation mode, attribute head or None).

    The number of classes and the width of the box head are those of the weights. A head of attributes, one linear layer over the features
    of a region, is ``attribute_head.weight`` and ``attribute_head.bias`` among them.

    Args:
        name: one of DETECTORS.
        weights: a file; None: random weights, the same ones each time, for tests of shapes.
        attributes: of the random head; 0: none.

    Raises:
        DataError: an unknown name, or weights of another model.
    """
    if name not in DETECTORS:
        raise DataError(f"--detector {name!r} is not one of {', '.join(DETECTORS)}")
    found = load_weights(weights) if weights is not None else {}
    head = {key.removeprefix(_ATTRIBUTE_HEAD): found.pop(key) for key in list(found) if key.startswith(_ATTRIBUTE_HEAD)}
    scores = found.get("roi_heads.box_predictor.cls_score.weight")
    if weights is not None and (scores is None or scores.ndim != 2):
        raise DataError(f"{weights}: no weights of a torchvision Faster R-CNN (roi_heads.box_predictor.cls_score.weight is missing)")
    classes, width = scores.shape if scores is not None else (RANDOM_CLASSES, 1024)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=classes)
        if width != model.roi_heads.box_predictor.cls_score.in_features:
            _widen(model, classes, width)
        attribute_head = nn.Linear(width, head["weight"].shape[0] if head else attributes) if head or attributes else None
    try:
        if found:
            # not strict: what is missing or unknown is refused below, but for the counters of frozen norms
            missing, unknown = model.load_state_dict(found, strict=False)
            missing = [key for key in missing if not key.endswith("num_batches_tracked")]  # frozen norms have none
            if missing or unknown:
                raise RuntimeError(f"{len(missing)} tensors are missing ({', '.join(missing[:2])}), {len(unknown)} are unknown")
        if head:
            attribute_head.load_state_dict(head)
    except RuntimeError as error:
        raise DataError(f"{weights}: not weights of {name} ({' '.join(str(error).split())[:200]})") from None
    if weights is not None and file_sum(weights).startswith(_COCO_V1):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    return model.eval(), attribute_head.eval() if attribute_head is not None else None


def _widen(model: Any, classes: int, width: int) -> None:
    """A box head of another width, as detectors with 2048 features have it."""
    if not hasattr(model.roi_heads.box_head, "fc6"):
        raise DataError(f"a box head of width {width} fits a detector with two linear layers only (fasterrcnn_resnet50_fpn, mobilenet)")
    model.roi_heads.box_head = detection.faster_rcnn.TwoMLPHead(model.roi_heads.box_head.fc6.in_features, width)
    model.roi_heads.box_predictor = detection.faster_rcnn.FastRCNNPredictor(width, classes)


def info_of(name: str, weights: Path | None, classes: Sequence[str] | None, attributes: Sequence[str] | None) -> RegionsInfo:
    """What shards say of a detector; the background is class 0.

    Raises:
        DataError: names that do not fit the weights.
    """
    model, head = build(name, weights, len(attributes or ()))
    width, columns = model.roi_heads.box_predictor.cls_score.in_features, model.roi_heads.box_predictor.cls_score.out_features
    if classes is not None and len(classes) not in (columns, columns - 1):
        raise DataError(f"--classes has {len(classes)} names, but the detector has {columns} classes, the background among them")
    if attributes is not None and (head is None or len(attributes) != head.out_features):
        raise DataError(f"--attributes has {len(attributes)} names, but the weights have {head.out_features if head else 0} attributes")
    names = (("background", *classes) if len(classes) < columns else tuple(classes)) if classes else None
    mark = json.dumps([name, file_sum(weights) if weights else "random", names, attributes])
    return RegionsInfo(
        kind="detector",
        fingerprint=hashlib.sha256(mark.encode()).hexdigest(),
        width=width,
        source=f"{name} of {weights.name if weights else 'random weights'}",
        boxes="detector",
        classes=names,
        background=0,
        attributes=tuple(attributes) if attributes else None,
        random=weights is None,
    )


@functools.lru_cache(maxsize=1)
def _loaded(name: str, weights: str | None, attributes: int, device: str) -> tuple[Any, nn.Linear | None]:
    model, head = build(name, Path(weights) if weights else None, attributes)
    return model.to(device), head.to(device) if head is not None else None


def maker(options: Mapping[str, Any]) -> DetectorMaker:
    """The maker of ``options``: name, weights (path or None), attributes (number), device, rule, refine."""
    model, head = _loaded(options["name"], options["weights"], options["attributes"], options["device"])
    return DetectorMaker(model, head, Rule(*options["rule"]), options["refine"])


class DetectorMaker:
    """Implements ``regions_shard.Maker``.

    Args:
        model: a torchvision Faster R-CNN in evaluation mode.
        head: of attributes, or None.
        rule: which boxes are kept.
        refine: boxes are those corrected for their best class, and features pooled again; else the proposals.
    """

    def __init__(self, model: Any, head: nn.Linear | None, rule: Rule, refine: bool = True) -> None:
        self.model, self.head, self.rule, self.refine = model, head, rule, refine

    def regions(self, jobs: Sequence[Job]) -> list[Regions | None]:
        return [self._one(job) for job in jobs]

    @torch.inference_mode()
    def _one(self, job: Job) -> Regions:
        device = next(self.model.parameters()).device
        pixels = torch.from_numpy(np.array(job.image)).to(device).permute(2, 0, 1).float() / 255
        images, _ = self.model.transform([pixels])
        size = images.image_sizes[0]
        maps = self.model.backbone(images.tensors)
        maps = {"0": maps} if isinstance(maps, Tensor) else maps
        boxes = self.model.rpn(images, maps, None)[0][0]
        features, logits, deltas = self._heads(maps, boxes, size)
        if self.refine and len(boxes):
            best = logits[:, 1:].argmax(1) + 1
            corrected = self.model.roi_heads.box_coder.decode(deltas, [boxes])
            boxes = clip_boxes_to_image(corrected[torch.arange(len(boxes), device=device), best], size)
            boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).amin(1) >= _LEAST_SIDE]
            features, logits, _ = self._heads(maps, boxes, size)
        probs = logits.softmax(1)
        scores = strongest(probs[:, 1:], boxes, self.rule.nms)
        kept = self.rule.keep(scores)
        scale = torch.tensor([job.image.width / size[1], job.image.height / size[0]], device=device).repeat(2)
        attributes = self.head(features[kept]).softmax(1).cpu().numpy() if self.head is not None else None
        return Regions(
            features=features[kept].cpu().numpy(),
            boxes=(boxes[kept] * scale).cpu().numpy(),
            image_size=np.array([job.image.height, job.image.width]),
            classes=(probs[kept, 1:].argmax(1) + 1).cpu().numpy(),
            class_probs=probs[kept].cpu().numpy(),
            attributes=attributes.argmax(1) if attributes is not None else None,
            attribute_probs=attributes,
            scores=scores[kept].cpu().numpy(),
        )

    def _heads(self, maps: Any, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """(features (N, F), class logits (N, C), corrections (N, 4 C)) of boxes."""
        heads = self.model.roi_heads
        features = heads.box_head(heads.box_roi_pool(maps, [boxes], [size]))
        logits, deltas = heads.box_predictor(features)
        return features, logits, deltas
