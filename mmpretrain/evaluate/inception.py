"""The network whose features FID is defined by, over a state dict that the user has: nothing is downloaded.

The Inception v3 of 2015-12-05 with its three quirks: average pooling that leaves the padding out (blocks A, C and the first E), maximum
instead of average pooling in the last block, and pictures resized as TensorFlow 1 does (no half-pixel centres). Weights are those that
pytorch-fid (``pt_inception-2015-12-05-6726825d.pth``) and torch-fidelity (``weights-inception-2015-12-05-6726825d.pth``) use: the same
tensors under torchvision's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import inception_v3
from torchvision.models.inception import InceptionA, InceptionC, InceptionE

from mmpretrain.weights.files import UNSAFE, unread

WIDTH, SIDE = 2048, 299
_CHUNK = 32


def _average(x_BCHW: Tensor) -> Tensor:
    return F.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x_BCHW: Tensor) -> Tensor:
    return F.max_pool2d(x_BCHW, 3, stride=1, padding=1)


def _block_a(block: Any, x: Tensor) -> list[Tensor]:
    double = block.branch3x3dbl_3(block.branch3x3dbl_2(block.branch3x3dbl_1(x)))
    return [block.branch1x1(x), block.branch5x5_2(block.branch5x5_1(x)), double, block.branch_pool(_average(x))]


def _block_c(block: Any, x: Tensor) -> list[Tensor]:
    single = block.branch7x7_3(block.branch7x7_2(block.branch7x7_1(x)))
    double = block.branch7x7dbl_1(x)
    for part in (block.branch7x7dbl_2, block.branch7x7dbl_3, block.branch7x7dbl_4, block.branch7x7dbl_5):
        double = part(double)
    return [block.branch1x1(x), single, double, block.branch_pool(_average(x))]


def _block_e(block: Any, x: Tensor, pool: Any) -> list[Tensor]:
    single = block.branch3x3_1(x)
    double = block.branch3x3dbl_2(block.branch3x3dbl_1(x))
    return [
        block.branch1x1(x),
        torch.cat((block.branch3x3_2a(single), block.branch3x3_2b(single)), 1),
        torch.cat((block.branch3x3dbl_3a(double), block.branch3x3dbl_3b(double)), 1),
        block.branch_pool(pool(x)),
    ]


class Inception(nn.Module):
    """Pictures to the 2,048 features of the last pooling.

    Args:
        state: see the module; the tensors of the classifier (``fc``) are not read.

    Raises:
        ValueError: a tensor is missing, or has another shape.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        net = inception_v3(weights=None, aux_logits=False, init_weights=False, num_classes=2)
        net.fc = nn.Identity()
        wanted = net.state_dict()
        for name, own in wanted.items():
            if name.endswith("num_batches_tracked"):
                continue
            if name not in state or state[name].shape != own.shape:
                found = "is missing" if name not in state else f"has the shape {tuple(state[name].shape)}, not {tuple(own.shape)}"
                raise ValueError(f"these are not the weights of FID's Inception v3: {name} {found}")
        net.load_state_dict({name: state.get(name, own) for name, own in wanted.items()})
        self.net = net.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path) -> Inception:
        """The network of a file of weights.

        Raises:
            ValueError: naming the file: it cannot be read, holds more than tensors, or other tensors.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise ValueError(f"{path}: there is no such file; FID's weights are not downloaded, see docs/generate.md") from None
        except Exception as error:  # noqa: BLE001  of damaged bytes the unpickler of torch may say anything
            reason = unread(path, error)
            raise ValueError(f"{path}: {reason if reason == UNSAFE else f'cannot be read as weights ({reason})'}") from None
        try:
            return cls(state)
        except Exception as error:  # noqa: BLE001  of a file that holds anything else
            raise ValueError(f"{path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Features (B, 2048) of pictures (B, 3, 299, 299) with values from 0 to 255; see ``resized``."""
        x = (pixels_BCHW - 128) / 128
        net: Any = self.net
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"):
            x = getattr(net, name)(x)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            block = getattr(net, f"Mixed_{name}")
            if isinstance(block, InceptionA):
                x = torch.cat(_block_a(block, x), 1)
            elif isinstance(block, InceptionC):
                x = torch.cat(_block_c(block, x), 1)
            elif isinstance(block, InceptionE):
                x = torch.cat(_block_e(block, x, _maximum if name == "7c" else _average), 1)
            else:  # the two that halve the map
                x = block(x)
        return x.mean(dim=(2, 3))

    def features(self, pictures: Sequence[Tensor]) -> np.ndarray:
        """Features of pictures, uint8 (3, H, W) each, of any sizes: float64 (N, 2048)."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(pictures), _CHUNK):
                part = [resized(picture[None].float(), SIDE) for picture in pictures[start : start + _CHUNK]]
                parts.append(self(torch.cat(part)))
        return torch.cat(parts).double().numpy() if parts else np.zeros((0, WIDTH))


def resized(pixels_BCHW: Tensor, side: int) -> Tensor:
    """Bilinear resizing as TensorFlow 1 does it: pixel i of the result lies at ``i * size / side``, without half-pixel centres."""
    return _weights(pixels_BCHW.shape[2], side).to(pixels_BCHW) @ pixels_BCHW @ _weights(pixels_BCHW.shape[3], side).to(pixels_BCHW).T


def _weights(size: int, side: int) -> Tensor:
    """(side, size): the share of each pixel of a line of ``size`` in each of ``side``."""
    place = torch.arange(side, dtype=torch.float64) * size / side
    low = place.floor().long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    part = place - low
    rows = torch.arange(side)
    made = torch.zeros(side, size, dtype=torch.float64)
    made[rows, low] += 1 - part
    made[rows, high] += part
    return made
