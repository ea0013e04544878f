"""The small region extractor: a convolutional network over the whole picture, RoIAlign, one hidden layer, heads. Its file is safetensors.

A picture is scaled so that its shorter side is ``size``; three convolutions give a map of half that resolution; the 7 x 7 cells of a box
with a fifth of its sides around it, and its size relative to the picture, go through one linear layer and ReLU: these ``width`` values are
the feature of the region. Heads: class, one softmax for each kind of attribute, objectness, and a correction of the box (the four numbers
of Faster R-CNN, arXiv 1506.01497, section 3.1.2). Temperatures fitted on data that training did not see (Guo et al., arXiv 1706.04599)
divide the logits of class and attributes.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align

from mmpretrain.data.cache import write_atomic
from mmpretrain.data.errors import DataError
from mmpretrain.data.regions_info import RegionsInfo
from mmpretrain.data_tools.regions_labels import Vocabulary

VERSION = 1
CELLS = 7
_MARGIN = 0.2  # parts of a side that are seen around a box: whether it is tight shows there
STRIDE = 2
_LONGEST = 6  # a picture's longer side is at most so many times its shorter one
_WINDOWS_KEPT = 200  # best windows whose boxes are corrected
_CORRECTIONS = 2  # times that they are
_CHUNK = 2048  # boxes pooled at a time, to bound memory
_DELTA_MOST = math.log(4.0)
_CHANNELS = (24, 48, 64)


class Config(NamedTuple):
    """Everything of an extractor but its weights."""

    vocabulary: Vocabulary
    size: int  # shorter side of pictures
    width: int  # of features
    scales: tuple[float, ...]  # sides of windows, parts of the shorter side
    ratios: tuple[float, ...]  # height / width of windows
    temperatures: tuple[float, ...] = ()  # of class and each kind of attribute; empty: 1

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "classes": self.vocabulary.classes,
            "kinds": self.vocabulary.kinds,
            "size": self.size,
            "width": self.width,
            "scales": self.scales,
            "ratios": self.ratios,
            "temperatures": self.temperatures,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Config:
        kinds = tuple((str(kind), tuple(map(str, names))) for kind, names in found["kinds"])
        numbers = {name: tuple(map(float, found[name])) for name in ("scales", "ratios", "temperatures")}
        return cls(Vocabulary(tuple(map(str, found["classes"])), kinds), int(found["size"]), int(found["width"]), **numbers)


class Heads(NamedTuple):
    """What the network says of N boxes."""

    features: Tensor  # (N, width)
    labels: tuple[Tensor, ...]  # logits of class, then of each kind of attribute
    objectness: Tensor  # (N,) logits
    deltas: Tensor  # (N, 4)


class RegionNet(nn.Module):
    """See the module.

    Args:
        config: sizes of the heads.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        before = 3
        for number, after in enumerate(_CHANNELS):
            stride = STRIDE if number == 1 else 1
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            before = after
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Linear(before * CELLS * CELLS + 4, config.width)
        self.labels = nn.ModuleList(nn.Linear(config.width, n) for n in _counts(config.vocabulary))
        self.objectness = nn.Linear(config.width, 1)
        self.deltas = nn.Linear(config.width, 4)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """The map (B, C, H / 2, W / 2) of pictures with values from 0 to 1."""
        return self.trunk((pixels_BCHW - 0.5) * 4)

    def heads(self, map_BCHW: Tensor, boxes_N5: Tensor, sides_N2: Tensor) -> Heads:
        """What the network says of boxes.

        Args:
            map_BCHW: of :meth:`forward`.
            boxes_N5: picture of the batch and x1 y1 x2 y2, in pixels of the scaled picture.
            sides_N2: width and height of the picture of each box.
        """
        margin = (boxes_N5[:, 3:5] - boxes_N5[:, 1:3]) * _MARGIN
        around = torch.cat((boxes_N5[:, :1], boxes_N5[:, 1:3] - margin, boxes_N5[:, 3:5] + margin), 1)
        cells = roi_align(map_BCHW, around, CELLS, spatial_scale=1 / STRIDE, sampling_ratio=2, aligned=True).flatten(1)
        wide = (boxes_N5[:, 3:5] - boxes_N5[:, 1:3]) / sides_N2.amin(1, keepdim=True)  # in shorter sides
        shape = torch.cat((wide, wide.clamp_min(1e-3).log()), 1)
        features = torch.relu(self.hidden(torch.cat((cells, shape), 1)))
        return Heads(features, tuple(head(features) for head in self.labels), self.objectness(features)[:, 0], self.deltas(features))


def _counts(vocabulary: Vocabulary) -> list[int]:
    return [len(vocabulary.classes), *(len(names) for _, names in vocabulary.kinds)]


def pixels_of(image: Image.Image, size: int) -> tuple[Tensor, float, float]:
    """(uint8 (3, h, w) with shorter side ``size``, scale of x, scale of y) of an RGB picture."""
    scale = size / min(image.size)
    width, height = (min(max(round(side * scale), 1), size * _LONGEST) for side in image.size)
    small = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous(), width / image.width, height / image.height


def apply_deltas(boxes_N4: Tensor, deltas_N4: Tensor) -> Tensor:
    """Boxes moved and stretched by (dx, dy, log dw, log dh)."""
    sides = boxes_N4[:, 2:] - boxes_N4[:, :2]
    centres = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2 + deltas_N4[:, :2] * sides
    half = sides * deltas_N4[:, 2:].clamp(-_DELTA_MOST, _DELTA_MOST).exp() / 2
    return torch.cat((centres - half, centres + half), 1)


def deltas_to(boxes_N4: Tensor, targets_N4: Tensor) -> Tensor:
    """What :func:`apply_deltas` needs to turn boxes into targets."""
    sides, wanted = boxes_N4[:, 2:] - boxes_N4[:, :2], targets_N4[:, 2:] - targets_N4[:, :2]
    moved = (targets_N4[:, :2] + targets_N4[:, 2:] - boxes_N4[:, :2] - boxes_N4[:, 2:]) / 2
    return torch.cat((moved / sides, (wanted / sides).log()), 1)


def windows(width: int, height: int, config: Config) -> Tensor:
    """The grid of windows (N, 4) over a picture, a third of their side apart, inside it; at least the whole picture."""
    found = [torch.tensor([[0.0, 0.0, float(width), float(height)]])]
    for scale in config.scales:
        for ratio in config.ratios:
            w, h = (min(scale * min(width, height) * part, side) for part, side in ((ratio**-0.5, width), (ratio**0.5, height)))
            lefts = torch.linspace(0, width - w, max(1, math.ceil((width - w) / (w / 3)) + 1))
            tops = torch.linspace(0, height - h, max(1, math.ceil((height - h) / (h / 3)) + 1))
            y, x = torch.meshgrid(tops, lefts, indexing="ij")
            found.append(torch.stack((x, y, x + w, y + h), -1).view(-1, 4))
    return torch.cat(found)


class Found(NamedTuple):
    """Regions of one picture, boxes in pixels of the scaled picture."""

    boxes: Tensor  # (R, 4)
    features: Tensor  # (R, width)
    probs: tuple[Tensor, ...]  # of class and each kind of attribute, each row sums to 1
    scores: Tensor  # (R,) objectness


class Extractor:
    """A trained network with its configuration, from a file.

    Args:
        net: in evaluation mode.
        info: what its shards say of it.
    """

    def __init__(self, net: RegionNet, info: RegionsInfo) -> None:
        self.net, self.info, self.config = net.eval(), info, net.config

    @torch.inference_mode()
    def describe(self, map_1CHW: Tensor, boxes_N4: Tensor, width: int, height: int) -> Heads:
        """Heads of boxes of one picture, in chunks that bound memory."""
        sides = torch.tensor([[float(width), float(height)]])
        parts = []
        for part in boxes_N4.split(_CHUNK) if len(boxes_N4) else [boxes_N4]:
            rows = torch.cat((torch.zeros(len(part), 1), part), 1)
            parts.append(self.net.heads(map_1CHW, rows, sides.expand(len(part), 2)))
        labels = tuple(torch.cat(kind) for kind in zip(*(part.labels for part in parts)))
        return Heads(
            torch.cat([part.features for part in parts]),
            labels,
            torch.cat([part.objectness for part in parts]),
            torch.cat([part.deltas for part in parts]),
        )

    @torch.inference_mode()
    def of_boxes(self, map_1CHW: Tensor, boxes_N4: Tensor, width: int, height: int) -> Found:
        """Features and probabilities of given boxes."""
        heads = self.describe(map_1CHW, boxes_N4, width, height)
        divisors = self.config.temperatures or (1.0,) * len(heads.labels)
        probs = tuple((logits / divisor).softmax(1) for logits, divisor in zip(heads.labels, divisors))
        return Found(boxes_N4, heads.features, probs, heads.objectness.sigmoid())

    @torch.inference_mode()
    def propose(self, map_1CHW: Tensor, width: int, height: int, nms: float) -> tuple[Tensor, Tensor]:
        """Boxes (N, 4) and their objectness (N,), best first: the best windows, corrected twice, after non-maximum suppression."""
        grid = windows(width, height, self.config)
        boxes, found = grid, self.describe(map_1CHW, grid, width, height)
        for _ in range(_CORRECTIONS):
            best = found.objectness.topk(min(_WINDOWS_KEPT, len(boxes))).indices
            moved = clip_boxes_to_image(apply_deltas(boxes[best], found.deltas[best]), (height, width))
            moved = moved[(moved[:, 2:] - moved[:, :2]).amin(1) >= 1]
            boxes = moved if len(moved) else grid[:1]
            found = self.describe(map_1CHW, boxes, width, height)
        scores = found.objectness.sigmoid()
        kept = batched_nms(boxes, scores, torch.zeros(len(boxes), dtype=torch.int64), nms)
        return boxes[kept], scores[kept]


def save_extractor(path: Path, net: RegionNet, measured: dict[str, Any], options: dict[str, Any]) -> RegionsInfo:
    """Write ``path`` (safetensors) and beside it ``path`` with ``.json``; returns what shards will say of it."""
    weights = save({name: value.detach().contiguous() for name, value in net.state_dict().items()})
    config = net.config.to_json()
    text = {"config": config, "weights_sha256": hashlib.sha256(weights).hexdigest(), "measured": measured, "options": options}
    write_atomic(path, weights)
    write_atomic(path.with_suffix(".json"), (json.dumps(text, indent=1) + "\n").encode("utf-8"))
    return load_extractor(path).info


def load_extractor(path: Path) -> Extractor:
    """The extractor of a file that :func:`save_extractor` wrote.

    Raises:
        DataError: the file or its JSON is missing, damaged, or the two do not belong together.
    """
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            raise DataError(f"{file} does not exist; an extractor is NAME.safetensors with NAME.json: make it with 'data regions --fit'")
    data = path.read_bytes()
    try:
        text = json.loads(beside.read_text(encoding="utf-8"))
        if text["config"]["version"] != VERSION:
            raise DataError(f"{beside}: version {text['config']['version']} is not {VERSION}; train the extractor again")
        if text["weights_sha256"] != hashlib.sha256(data).hexdigest():
            raise DataError(f"{path}: the weights are not those that {beside.name} describes; copy both files again")
        config = Config.from_json(text["config"])
        net = RegionNet(config)
        net.load_state_dict(load(data))
        info = _info(path.name, config, text)
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: it is no region extractor ({type(error).__name__}: {error}); train it again") from None
    return Extractor(net, info)


def _info(name: str, config: Config, text: dict[str, Any]) -> RegionsInfo:
    mark = hashlib.sha256(json.dumps([config.to_json(), text["weights_sha256"]], sort_keys=True).encode()).hexdigest()
    vocabulary = config.vocabulary
    return RegionsInfo(
        kind="extractor",
        fingerprint=mark,
        width=config.width,
        source=f"extractor {name}",
        classes=vocabulary.classes,
        attributes=vocabulary.attributes or None,
        groups=vocabulary.groups,
        measured=text["measured"],
    )
