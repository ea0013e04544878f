"""Grid features: the cells of the last map of any timm backbone as regions, for data without a detector (Jiang et al., arXiv 2001.03615).

A picture is scaled to a square of the backbone's size; the map (of a convolutional network) or the patch tokens (of a transformer) are
averaged to at most ``side`` x ``side`` cells, and each cell is a region with the part of the picture that it covers. There are no classes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmpretrain.data.errors import DataError
from mmpretrain.data.regions_info import RegionsInfo
from mmpretrain.data_tools.regions_detector import file_sum, load_weights
from mmpretrain.data_tools.regions_shard import Job
from mmpretrain.types import Regions


def build(name: str, weights: Path | None) -> Any:
    """A timm backbone without its classifier, in evaluation mode.

    Args:
        name: of timm.
        weights: a file (.safetensors, .pth, .bin); None: random weights, the same ones each time, for tests of shapes.

    Raises:
        DataError: an unknown name, or weights of another model.
    """
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:12]}*")[:3]
        raise DataError(f"--grid {name!r} is no model of timm" + (f"; such as {', '.join(near)}" if near else ""))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False, num_classes=0)
    if weights is not None:
        found = load_weights(weights)
        own = model.state_dict()
        missing = [key for key in own if key not in found]
        wrong = [key for key, value in own.items() if key in found and value.shape != found[key].shape]
        if missing or wrong:
            raise DataError(
                f"{weights}: not weights of {name} ({len(missing)} tensors missing, {len(wrong)} of other shapes: {(missing + wrong)[0]})"
            )
        model.load_state_dict({key: found[key] for key in own})
    return model.eval()


def _settings(model: Any) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """(side of pictures, mean, standard deviation) that a backbone was made for."""
    import timm.data

    found = timm.data.resolve_model_data_config(model)
    return int(found["input_size"][-1]), tuple(found["mean"]), tuple(found["std"])


def cells_of(model: Any, pixels_1CHW: Tensor, side: int) -> Tensor:
    """The cells (h, w, F) of a picture, at most ``side`` x ``side``.

    Raises:
        DataError: a backbone whose output is neither a map nor patch tokens.
    """
    found = model.forward_features(pixels_1CHW)
    if not isinstance(found, Tensor) or found.ndim not in (3, 4):
        raise DataError(f"--grid: {type(model).__name__} gives no map of features; take a convolutional network or a ViT")
    if found.ndim == 3:  # tokens: class and register tokens first
        patches = found[:, getattr(model, "num_prefix_tokens", 0) :]
        across = math.isqrt(patches.shape[1])
        if across * across != patches.shape[1]:
            raise DataError(f"--grid: {type(model).__name__} gives {patches.shape[1]} tokens, which are no square")
        found = patches.transpose(1, 2).reshape(1, -1, across, across)
    elif found.shape[1] != model.num_features:  # channels last, as Swin and its like give it
        found = found.permute(0, 3, 1, 2)
    height, width = (min(side, own) for own in found.shape[2:])
    return F.adaptive_avg_pool2d(found, (height, width))[0].permute(1, 2, 0)


def info_of(name: str, weights: Path | None, side: int) -> RegionsInfo:
    """What shards say of a backbone.

    Raises:
        DataError: see :func:`build`, or ``side`` out of its range.
    """
    if not 1 <= side <= 64:
        raise DataError(f"--grid-side {side} must be from 1 to 64")
    model = build(name, weights)
    mark = json.dumps(["grid", name, file_sum(weights) if weights else "random", side])
    return RegionsInfo(
        kind="grid",
        fingerprint=hashlib.sha256(mark.encode()).hexdigest(),
        width=int(model.num_features),
        source=f"{name} of {weights.name if weights else 'random weights'}, {side} x {side} cells",
        boxes="grid",
        random=weights is None,
    )


@functools.lru_cache(maxsize=1)
def _loaded(name: str, weights: str | None, device: str) -> Any:
    return build(name, Path(weights) if weights else None).to(device)


def maker(options: Mapping[str, Any]) -> GridMaker:
    """The maker of ``options``: name, weights (path or None), side, device."""
    return GridMaker(_loaded(options["name"], options["weights"], options["device"]), options["side"])


class GridMaker:
    """Implements ``regions_shard.Maker``.

    Args:
        model: a timm backbone in evaluation mode.
        side: most cells along each side.
    """

    def __init__(self, model: Any, side: int) -> None:
        self.model, self.side = model, side
        self.size, self.mean, self.std = _settings(model)

    def regions(self, jobs: Sequence[Job]) -> list[Regions | None]:
        return [self._one(job) for job in jobs]

    @torch.inference_mode()
    def _one(self, job: Job) -> Regions:
        device = next(self.model.parameters()).device
        small = job.image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(small)).to(device).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (self.mean, self.std))
        cells = cells_of(self.model, ((pixels - mean) / std)[None], self.side)
        height, width = cells.shape[:2]
        ys, xs = (np.linspace(0, whole, count + 1) for whole, count in ((job.image.height, height), (job.image.width, width)))
        boxes = [[xs[x], ys[y], xs[x + 1], ys[y + 1]] for y in range(height) for x in range(width)]
        features = cells.reshape(height * width, -1)
        return Regions(
            features=features.cpu().numpy(),
            boxes=np.array(boxes),
            image_size=np.array([job.image.height, job.image.width]),
            global_feature=features.mean(0).cpu().numpy(),
        )
